"""Training did not stop where its evaluations and its patience say.

What it does: counts the patience once more on the evaluation losses of steps.jsonl: the first is
the best, each that is not below the best takes one off. The run must end exactly where none is
left, or at its last step; and where the scenario says that it must stop early, before that.

Why it is bad: an early-stopping test that never stops proves nothing, and a run that ignores the
setting overfits while its settings say that it cannot.

Example: the callback is added and no evaluation ever runs; or it waits for one evaluation more.

What to do: check that samples are held out, and that evaluations happen (`eval_loss` in
steps.jsonl).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.findings import Evidence, Finding, Severity
from harness.observations import Observations
from harness.registry import Missing, NotApplicable, probe


@probe("MPD709", modes=("FM15",), severity=Severity.CRITICAL)
def check(observations: Observations, expectation: Mapping[str, Any]) -> Finding | str:
    """Fail when a run went on after its patience, ended before, or never evaluated."""
    config = expectation.get("config") or {}
    patience = config.get("early_stopping")
    if patience is None:
        raise NotApplicable("the run does not stop early")
    if observations.ending != "trained":
        raise Missing("the run did not end by itself")
    taken = len(observations.losses)
    if not taken:
        raise Missing("no step was logged")
    missed = _find_missed(observations.evaluations, config.get("eval_steps"), taken)
    if missed is not None:
        return _describe("evaluation after step", found="none", expected=missed)
    ends = _find_end(observations.evaluations, int(patience))
    planned = config.get("max_steps")
    wanted = planned if ends is None else ends
    if wanted is not None and taken != wanted:
        return _describe("optimizer steps", found=taken, expected=wanted)
    if expectation.get("stops_early") and ends in (None, planned):
        return _describe("optimizer steps", found=taken, expected=f"fewer than {planned}")
    count = len(observations.evaluations)
    if ends is None:
        return f"went to its last step: {count} evaluations do not use up a patience of {patience}"
    return f"stopped after {taken} steps, where {count} evaluations use up a patience of {patience}"


def _find_missed(
    evaluations: Sequence[tuple[int, float]], every: int | None, taken: int
) -> int | None:
    """Return the first step after which an evaluation was due and did not come, or None."""
    seen = {step for step, _ in evaluations}
    due = range(every, taken + 1, every) if every else range(0)
    if not seen and not due:
        return taken
    return next((step for step in due if step not in seen), None)


def _find_end(evaluations: Sequence[tuple[int, float]], patience: int) -> int | None:
    """Return the step at which the patience is used up, or None where some is left."""
    best, waited = None, 0
    for step, loss in evaluations:
        if best is None or loss < best:
            best, waited = loss, 0
        else:
            waited += 1
        if waited >= patience:
            return step
    return None


def _describe(what: str, *, found: int | str, expected: int | str) -> Finding:
    return Finding(
        message=f"{what}: found {found}, expected {expected}, by the evaluations and the patience",
        evidence=(Evidence(what=what, file="steps.jsonl", found=found, expected=expected),),
        cause="no evaluation ran, its result was not looked at, or evaluations are counted wrongly",
        remedy="check --eval-fraction and --eval-steps, and eval_loss in steps.jsonl",
    )
