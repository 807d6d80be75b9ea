"""The voice that the base had is lost.

What it does: asks prompts greedily and scores the answers with a voice profile (marker families),
against the base on the same prompts.

Why it is bad: a stage of training took the voice away while its loss fell (FM66). The numbers of
the training loop do not show it.

Example: voice score 0.47 before a DPO stage, 0.00 for all 28 topics after it.

What to do: run the other probes on the checkpoint before this stage and after it, stacking
(adapter-stacked) and EOS (eos-flood) first; train the stage again from a model that was merged.

How it decides: collapse means that the whole 95% interval of this checkpoint's mean lies below half
of the base's. If both score below 0.2 the control has failed and nothing is said: a dead scorer is
not a score of zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.facts import BehaviourFacts
from harness.findings import Evidence, Finding
from harness.registry import ControlFailed, Missing, probe

FLOOR = 0.2
"""Score below which a control shows nothing."""
KEPT = 0.5
"""Share of the base's score below which a drop is a collapse."""


@probe("MPD605", modes=["FM66"])
def check(behaviour: BehaviourFacts) -> Finding | str:
    """Compare the voice with that of the base."""
    mine, theirs = behaviour.voice, behaviour.control_voice
    if mine is None:
        raise Missing("there is no voice profile; pass --voice FILE")
    if theirs is None:
        raise Missing("needs the base to compare with; pass --base PATH")
    score, before = _mean(mine), _mean(theirs)
    if before < FLOOR:
        if score < FLOOR:
            raise ControlFailed(f"the base itself scores {before:.2f}, so nothing can be concluded")
        return f"voice {score:.2f}, the base's {before:.2f}"
    high = _upper_bound(score, len(mine))
    if high >= KEPT * before:
        return f"voice {score:.2f} of {len(mine)} answers, the base's {before:.2f}"
    return Finding(
        message=f"voice fell from {before:.2f} to {score:.2f} ({len(mine)} answers; with 95% "
        f"confidence at most {high:.2f})",
        evidence=(
            Evidence(
                what="mean voice score",
                found=round(score, 4),
                expected=f"at least {KEPT * before:.2f}, half of the base's {before:.2f}",
            ),
            Evidence(what="first answer", found=behaviour.answers.texts[0][:120]),
        ),
        cause="the last stage of training: stacked adapters, a faulty EOS or template, a learning "
        "rate too high",
        remedy="diagnose the checkpoint before this stage, then train the stage again from it",
    )


def _mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)


def _upper_bound(share: float, total: int) -> float:
    """Return the upper end of Wilson's 95% interval; for scores between 0 and 1 it is wider."""
    z = 1.96
    scale = 1 + z * z / total
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return (share + z * z / (2 * total) + half) / scale
