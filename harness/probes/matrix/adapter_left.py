"""A stage of a lifecycle left another number of adapters than it should.

What it does: counts the adapters in what every stage left, beside and inside each other: one in an
adapter's folder, none in a merged model or in a base that an adapter was taken off.

Why it is bad: what is left is trained upon, or loaded again, by the next stage: adapter stacking
(FM17, FM18, FM19, FM21).

Example: a file that holds the adapters of three rounds, of which one is loaded.

What to do: merge or unload between the stages, and save what that returns into an empty folder.
"""

from __future__ import annotations

from harness.facts.lifecycle import Lifecycle, Stage
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe


@probe("MPD737", modes=("FM17", "FM18", "FM19"), severity=Severity.CRITICAL)
def check(lifecycle: Lifecycle) -> Finding | str:
    """Fail at a stage with too many adapters, too few, or with other tensors than it must have."""
    wrong = [
        Evidence(what=f"adapters in {one.name}", found=one.adapters, expected=_wanted(one))
        for one in lifecycle.stages
        if one.adapters != _wanted(one)
    ]
    wrong += [
        Evidence(what=f"tensors of {one.name} that are others", found=one.foreign, expected=0)
        for one in lifecycle.stages
        if one.foreign
    ]
    if not wrong:
        return f"the right number of adapters in {len(lifecycle.stages)} stages"
    return Finding(
        message=f"{wrong[0].what}: {wrong[0].found}, expected {wrong[0].expected}"
        + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""),
        evidence=tuple(wrong),
        cause="a stage began on a model that still had the adapter of the one before",
        remedy="model = model.merge_and_unload() between stages, or --adapter to go on with one",
    )


def _wanted(stage: Stage) -> int:
    return 1 if stage.kind == "adapter" else 0
