"""The artefact does not answer as a model should.

What it does: generates one batch of answers from the reloaded artefact and from its base: logits
must be finite at every step, answers neither empty nor without an end where the base's are not,
and, where the base brings a quiz and a voice, facts and voice not lower than chance explains.

Why it is bad: reloaded logits may agree with the trained model's while that one is ruined: NaN
after a few tokens (FM12), an end at once (FM40) or never (FM01), everything forgotten (FM66).

Example: 6 of 6 answers are empty; of the base's none.

What to do: lower the learning rate, and look at the label mask: is EOS what training taught most?
"""

from __future__ import annotations

from collections.abc import Iterator

from harness.findings import Evidence, Finding, Severity
from harness.observations import Generated, Observations
from harness.registry import Missing, probe
from harness.weighing.collapse import wilson_interval

KEPT = 0.5
"""Share of the base's score below which, with 95% confidence, a drop is a collapse."""
FLOODED = 0.5
"""Share of empty answers beyond which a model is flooded, where its base has half as many or less;
where all are empty, a single one of the base's that is not tells it."""
ENDLESS = 0.5
"""Share of unfinished answers from which on a model may count as not stopping, and its base as no
control."""


@probe("MPD716", modes=("FM01", "FM12", "FM40", "FM66"), severity=Severity.CRITICAL)
def check(observations: Observations) -> Finding | str:
    """Fail on logits that are no numbers, answers that are empty, and collapsed scores."""
    seen = observations.generated
    if seen is None or observations.ending != "trained":
        raise Missing("no batch was generated: the model scores, or the whole quiz was asked")
    wrong = list(_wrong(seen))
    if not wrong:
        said = f"{seen.prompts - seen.empty} of {seen.prompts} answers, all logits finite"
        return (
            said
            if seen.right is None
            else f"{said}; {seen.right} facts, {seen.control_right} before"
        )
    return Finding(
        message=f"{wrong[0].what}: {wrong[0].found}, expected {wrong[0].expected}",
        evidence=(*wrong, Evidence(what="first answer", found=seen.first_answer)),
        cause="the learning rate is too high, EOS is what training taught most, or a precision "
        "overflows",
        remedy="lower the learning rate and train again; compare with --precision fp32",
    )


def _wrong(seen: Generated) -> Iterator[Evidence]:
    if seen.nonfinite:
        yield Evidence(
            what="prompts with logits that are no numbers", found=seen.nonfinite, expected=0
        )
    is_flooded = FLOODED * seen.prompts < seen.empty >= 2 * seen.control_empty
    if is_flooded or seen.empty == seen.prompts > seen.control_empty:
        yield Evidence(
            what="empty answers", found=seen.empty, expected=f"about {seen.control_empty}"
        )
    mine, theirs = (seen.prompts - ended for ended in (seen.ended, seen.control_ended))
    if theirs < ENDLESS * seen.prompts <= mine and _is_more(mine, theirs, seen.prompts):
        yield Evidence(what="answers without an end", found=mine, expected=f"about {theirs}")
    if seen.right is not None and seen.control_right is not None:
        yield from _fallen("facts", seen.right, seen.control_right, seen.prompts)
    if seen.voice is not None and seen.control_voice is not None:
        total = seen.prompts
        yield from _fallen("voice", seen.voice * total, seen.control_voice * total, total)


def _is_more(mine: int, theirs: int, total: int) -> bool:
    """Whether the 95% intervals of two counts lie apart."""
    lowest, highest = (
        wilson_interval(mine / total, total)[0],
        wilson_interval(theirs / total, total)[1],
    )
    return lowest > highest


def _fallen(what: str, mine: float, theirs: float, total: int) -> Iterator[Evidence]:
    """Yield a drop whose whole 95% interval lies below half of the base's score."""
    high = wilson_interval(mine / total, total)[1]
    if high < KEPT * theirs / total:
        yield Evidence(what=what, found=round(mine, 2), expected=f"about {theirs:.2f} of {total}")
