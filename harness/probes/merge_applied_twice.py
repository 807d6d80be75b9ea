"""An adapter that was merged twice, or with twice its scale.

What it does: compares merged - base with the change that the adapter describes; k is how much of it
arrived. Here k is 2: it was merged twice, or lora_alpha was edited after the merge, so
that the scale is half of what it was. The values do not tell which.

Why it is bad: the model overshoots: more extreme than the adapter it came from, often incoherent
(FM19, FM62). Every tensor is finite and of the right shape.

Example: k = 2.00 in 64 of 64 modules, after merging into a folder whose adapter_config.json made
the loader apply the adapter a second time.

What to do: compare lora_alpha of adapter_config.json with that of the trainer's checkpoints, or of
the recipe (`grep lora_alpha */adapter_config.json`). If it is the same, merge once, from the
original base: load base and adapter, merge_and_unload(), save into an *empty* folder. If not,
restore it.
"""

from __future__ import annotations

from harness.facts.checkpoint import Lineage
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, probe

_TELL = (
    "if it is the same there, merge once, from the original base, into an empty folder; if not, "
    "restore it"
)


@probe("MPD402", modes=["FM19", "FM20"], severity=Severity.CRITICAL)
def check(lineage: Lineage) -> Finding | str:
    """Look for modules with k = 2."""
    judged = [one for one in lineage.modules if one.resolvable]
    if not judged:
        raise Missing("the adapter's change is smaller than the rounding of the merged weights")
    twice = [one for one in judged if one.is_doubled]
    if not twice:
        return f"no adapter was merged twice into {len(judged)} modules"
    return Finding(
        message=f"the adapter arrived twice in {len(twice)} of {len(judged)} modules "
        f"(k = {twice[0].k:.3f}, 1 expected): merged twice, or with lora_alpha twice as large as "
        f"adapter_config.json says now",
        evidence=tuple(
            Evidence(what="k", tensor=one.module, found=round(one.k, 4), expected=1.0)
            for one in twice
        ),
        cause="a model that was merged already was loaded with its adapter and merged again; or "
        "lora_alpha was halved in adapter_config.json after the merge",
        remedy=f"grep lora_alpha in adapter_config.json of the trainer's checkpoints: {_TELL}",
    )
