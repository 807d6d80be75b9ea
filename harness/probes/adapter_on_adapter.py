"""An adapter whose base is an adapter, not a model.

What it does: looks into the folder that `base_model_name_or_path` names.

Why it is bad: the second stage was trained on base + first adapter. Loaded through its settings it
lands on whatever the reader makes of that folder: the first adapter as well, or the bare base
without it, so that the SFT below a DPO is lost (FM36), or one adapter on top of the other (FM17).

Example: `base_model_name_or_path: runs/sft`, where runs/sft holds adapter_config.json and no model.

What to do: merge the first adapter into its base, and train the second on the result; to use what
is there, load the base, merge the first adapter, then load the second.
"""

from __future__ import annotations

from harness.facts.adapters import NamedBase
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, NotApplicable, probe

FILE = "adapter_config.json"


@probe("MPD214", modes=["FM36", "FM17"], severity=Severity.HIGH)
def check(named_base: NamedBase) -> Finding | str:
    """Report a base that is an adapter."""
    base = named_base
    if not base.name:
        raise NotApplicable("the adapter names no base")
    if not base.kind:
        raise Missing(f"the base {base.name[:200]} is not at hand")
    if base.kind == "model":
        return f"the base {base.name[:200]} is a model"
    what = "this very folder" if base.kind == "itself" else "an adapter"
    return Finding(
        message=f"adapter_config.json names {what} as the base ({base.name[:200]}): what the "
        "adapter was trained on is not what loaders put it on",
        evidence=(
            Evidence(what="base_model_name_or_path", file=FILE, found=base.name[:200]),
            *(
                (Evidence(what="base of that adapter", found=base.adapter_base),)
                if base.adapter_base
                else ()
            ),
        ),
        cause="the second stage was trained on a model that still had the first adapter",
        remedy="merge the first adapter into its base (mud-puppy merge, or PEFT's "
        "merge_and_unload()) and name the merged model",
    )
