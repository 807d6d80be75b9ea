"""When is a lower score a collapse? One rule for accuracy and voice, judged against the base.

A collapse is certain: the whole 95% interval of the checkpoint lies below half of the base's score.
Where both score below the floor the control has failed and nothing is said (design, rule 6).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from statistics import fmean

from harness.findings import Evidence, Finding
from harness.registry import ControlFailed, Missing
from mudpuppy.intervals import wilson_interval as wilson_interval  # for the probes, too

FLOOR = 0.2
"""Score of the base below which it is no control: half of less cannot be told from nothing by
some dozen answers."""
RESAMPLES = 400
"""Draws of the paired bootstrap; enough for the second digit of a confidence of 97.5%."""
KEPT = 0.5
"""Share of the base's score below which a drop is a collapse; other data may cost some of it,
the collapses of FM66 took nearly all (0.77 to 0.02)."""


def judge_scores(
    name: str,
    what: str,
    mine: Sequence[float],
    theirs: Sequence[float],
    first_answer: str,
    *,
    sureness: float = 0.95,
) -> Finding | str:
    """Compare the scores of a checkpoint's answers, 0 to 1 each, with those of its base.

    Args:
        name: what is scored, such as `accuracy`.
        what: the measure, for the evidence.
        mine: scores of the checkpoint's answers.
        theirs: scores of the base's answers to the same prompts.
        first_answer: shown as evidence.
        sureness: confidence of the interval; higher where many groups are judged at once.

    Raises:
        ControlFailed: neither of the two scores.
    """
    score, before = sum(mine) / len(mine), sum(theirs) / len(theirs)
    if before < FLOOR and score < FLOOR:
        raise ControlFailed(f"the base itself scores {before:.2f}, so nothing can be concluded")
    high = wilson_interval(score, len(mine), sureness)[1]
    if before < FLOOR or high >= KEPT * before or not _is_paired_lower(mine, theirs):
        return f"{name} {score:.2f} of {len(mine)} answers, the base's {before:.2f}"
    return Finding(
        message=f"{name} fell from {before:.2f} to {score:.2f} ({len(mine)} answers; with "
        f"{sureness:.3g} confidence at most {high:.2f})",
        evidence=(
            Evidence(
                what=what,
                found=round(score, 4),
                expected=f"at least {KEPT * before:.2f}, half of the base's {before:.2f}",
            ),
            Evidence(what="first answer", found=first_answer[:120]),
        ),
        cause="the last stage of training: stacked adapters, a faulty EOS or template, a learning "
        "rate too high",
        remedy="diagnose the checkpoint before this stage, then train the stage again from it",
    )


def judge_alone(
    name: str, what: str, scores: Sequence[float], *, least: float | None, name_control: str
) -> str:
    """Judge scores without a base: what is half of the best there is has not collapsed.

    Args:
        name: what is scored.
        what: what reached the score, such as `right`.
        scores: of the answers, 0 to 1 each.
        least: the least mean that the profile asks for; by default half of 1, the best base.
        name_control: what to type so that there is a control.

    Raises:
        Missing: the scores are lower, which the base's may be, too.
    """
    score, wanted = fmean(scores), KEPT if least is None else least
    if score < wanted:
        raise Missing(f"nothing to compare {what} with; {name_control}")
    return f"{name} {score:.2f} of {len(scores)} answers, at least {wanted:g}; no base to compare"


def can_collapse(theirs: Sequence[float]) -> bool:
    """Whether a base scores so much on so many answers that a collapse to 0 would be certain."""
    before = sum(theirs) / len(theirs)
    return before >= FLOOR and wilson_interval(0, len(theirs))[1] < KEPT * before


def _is_paired_lower(mine: Sequence[float], theirs: Sequence[float]) -> bool:
    """Whether answers lost half of the score also when the questions are drawn again.

    A bootstrap over the pairs (Efron): what makes a question hard for one model makes it hard for
    its base, and a base with few right answers is no sure measure.
    """
    pairs = list(zip(mine, theirs, strict=True))
    lost = [ours - KEPT * base for ours, base in pairs]
    draw = random.Random(0)
    means = sorted(math.fsum(draw.choices(lost, k=len(lost))) for _ in range(RESAMPLES))
    return means[math.ceil(0.975 * RESAMPLES) - 1] < 0
