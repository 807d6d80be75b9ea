"""The base of an adapter is named so that others may get another one.

What it does: reads `base_model_name_or_path` and `revision`: a 4-bit twin of a model, a path of
another machine, a relative folder, no name at all, or a name of a hub without a revision.

Why it is bad: every reader follows that name. The 4-bit twin of a model has other weights than the
model, so a merge into it is rounded and a merge into the model is not what was trained (FM35,
FM13); a name without revision is whatever lies there on the day.

Example: `unsloth/llama-3-8b-bnb-4bit` in an adapter that is merged into
`meta-llama/Meta-Llama-3-8B`.

What to do: name the 16-bit model and its revision in adapter_config.json, or pass `--base`.
"""

from __future__ import annotations

import re

from harness.facts.adapters import NamedBase
from harness.facts.checkpoint import Adapter
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe

FILE = "adapter_config.json"
_TWIN = re.compile(r"(?:bnb[-_]?4bit|[-_]4bit|[-_]int4|[-_]nf4|[-_](?:gptq|awq)(?:[-_].*)?)$", re.I)
_HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@probe("MPD215", modes=["FM35", "FM13"], severity=Severity.NOTE)
def check(adapter: Adapter, named_base: NamedBase) -> Finding | str:
    """Judge the name and the revision."""
    if not adapter.settings:
        raise NotApplicable("no settings of an adapter lie here")
    name = named_base.name.rstrip("/")
    problem = _problem(name, named_base.kind, adapter.settings.get("revision"))
    if not problem:
        return f"the base is named: {name[:200]}"
    return Finding(
        message=f"the base is named loosely: {problem}",
        evidence=(
            Evidence(what="base_model_name_or_path", file=FILE, found=name[:200] or "absent"),
        ),
        cause="the adapter was trained on a quantised twin, on another machine, or without a "
        "revision",
        remedy="write the 16-bit model and its revision into adapter_config.json, or pass --base",
    )


def _problem(name: str, kind: str, revision: object) -> str:
    if not name:
        return "base_model_name_or_path is empty, so loaders cannot find it"
    if _TWIN.search(name):
        return f"{name[:200]} is a quantised twin, and its weights are rounded"
    is_path = name.startswith(("/", "~", ".")) or re.match(r"[A-Za-z]:\\", name) is not None
    if kind == "model" and not name.startswith(("/", "~")) and not re.match(r"[A-Za-z]:", name):
        return f"{name[:200]} is a relative folder, which is found from here alone"
    if kind:
        return ""
    if is_path or name.count("/") > 1 or "\\" in name:
        return f"{name[:200]} is a path that is not here"
    if (_HUB.fullmatch(name) or "/" not in name) and not revision:
        return f"{name[:200]} without a revision is whatever lies there today"
    return ""
