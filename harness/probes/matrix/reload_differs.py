"""The saved artefact is not the model that was trained.

What it does: opens every artefact in a fresh process, by plain PEFT or transformers where they can
read it, and compares logits with those of the model right after its last step.

Why it is bad: a merge that did nothing, a wrapper's prefix in the keys or a tensor that was not
saved all load without an error, and answer like another model (FM20, FM22, FM33, FM34, FM53).

Example: QLoRA's merge writes into a temporary copy: the merged model equals the base.

What to do: run `mudpuppy-doctor` on the folder with `--base`; do not ship it.
"""

from __future__ import annotations

from harness.findings import Evidence, Finding, Severity
from harness.observations import Comparison, Observations
from harness.registry import Missing, probe


@probe("MPD707", modes=("FM20", "FM22", "FM33", "FM34", "FM53"), severity=Severity.CRITICAL)
def check(observations: Observations) -> Finding | str:
    """Fail when an expected artefact is absent or its logits differ beyond the tolerance."""
    if observations.ending != "trained":
        raise Missing("nothing was saved to reload")
    seen = {item.artefact: item for item in observations.comparisons}
    if not seen and not observations.expected_artefacts:
        raise Missing("the run promised no artefact")
    absent = [name for name in observations.expected_artefacts if name not in seen]
    off = [item for item in seen.values() if item.relative > item.tolerance]
    if not absent and not off:
        worst = max(item.relative for item in seen.values())
        return f"{', '.join(seen)} reloaded; the logits are at most {worst:.1e} of the scale off"
    if absent:
        message = f"the run promised {', '.join(absent)} and left no such artefact"
    else:
        worst_item = max(off, key=lambda item: item.relative)
        message = (
            f"the reloaded {worst_item.artefact} gives other logits than the trained model: "
            f"{worst_item.relative:.2g} of the scale off, {worst_item.tolerance:.2g} allowed"
        )
    return Finding(
        message=message,
        evidence=(
            *(Evidence(what="artefact absent", found=None, expected=name) for name in absent),
            *(_describe(item) for item in off),
        ),
        cause="the file holds other weights than were trained: an adapter that was not applied or "
        "not merged, keys that match nothing, or tensors that were left out",
        remedy="mudpuppy-doctor CHECKPOINT --base BASE",
    )


def _describe(item: Comparison) -> Evidence:
    return Evidence(
        what=f"largest logit difference, opened by {item.loader}",
        file=item.artefact,
        found=item.max_difference,
        expected=f"at most {item.tolerance * item.scale:.3g} (scale {item.scale:.3g})",
    )
