"""Why a stage is rolled back: what the engine refused, what the scores say, what the gate found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mudpuppy.adapters import codes
from mudpuppy.pipelines.curriculum.gates import LEFTOVER, MERGE, STACKED, STUB, Fault, Verdict

ROOTS = {
    codes.STACKED: STACKED,
    codes.LEFT_BEHIND: LEFTOVER,
    codes.NOTHING_TRAINS: STUB,
    codes.BASE_TRAINS: STUB,
    codes.TOO_LARGE: STUB,
    codes.NOT_CLEAN: LEFTOVER,
    codes.BASE_CHANGED: MERGE,
    codes.NOT_FINITE: MERGE,
}
"""Root causes of what the engine itself refuses."""
FAILED = "MP-C01"
"""The engine ended a stage with an error that has no code of its own."""
ACCURACY_FELL = "MP-C02"
"""A stage lost more of the topic's accuracy than it may."""
VOICE_FELL = "MP-C03"
"""A stage that trains the voice lost some of it."""
NOTHING_LEARNT = "MP-C04"
"""No step of a stage had a gradient."""


def faults_of_error(error: Mapping[str, str]) -> tuple[Fault, ...]:
    """Return the fault that an error of the engine is, named by its code where it has one."""
    code = error["code"]
    root = ROOTS.get(code, "")
    fault = Fault(
        code=code or FAILED,
        name=root or "stage-failed",
        message=error["message"].removeprefix(f"{code}: "),
        root=root,
        cause="the engine stopped before anything was saved",
        remedy=error["hint"],
    )
    return (fault,)


def faults_of_training(kind: str, trained: Mapping[str, Any]) -> tuple[Fault, ...]:
    """Return the fault of a stage in which no step had a gradient, and so nothing was learnt."""
    if not trained["learnt_nothing"]:
        return ()
    return (
        Fault(
            code=NOTHING_LEARNT,
            name="nothing-learnt",
            message=f"none of {trained['steps']} steps had a gradient",
            cause="the data give no loss, or no weight that trains has a part in it",
            remedy=f"look at the data: mud-puppy data, and at {kind}: lora_target_modules",
        ),
    )


def faults_of_scores(
    kind: str, before: Mapping[str, Any], after: Mapping[str, Any], max_drop: float
) -> tuple[Fault, ...]:
    """Return what of a topic's own scores fell further than it may in a stage that is kept.

    SFT teaches answers: its accuracy counts, and its voice is left to the gate, since DPO comes
    after it. DPO trains the voice: both count.

    Args:
        kind: `sft` or `dpo`.
        before: scores of the topic's questions before the stage.
        after: the same after it.
        max_drop: how far each may fall.
    """
    measures = ("accuracy",) if kind == "sft" else ("accuracy", "voice")
    found = []
    for measure in measures:
        was, now = before["final"][measure], after["final"][measure]
        if was is None or now is None or now >= was - max_drop:
            continue
        found.append(
            Fault(
                code=ACCURACY_FELL if measure == "accuracy" else VOICE_FELL,
                name=f"{measure}-fell",
                message=f"{measure} of the topic fell from {was:.2f} to {now:.2f} "
                f"({after['final']['questions']} questions; {max_drop:g} are allowed)",
                cause="the stage learnt something else than the topic: too high a rate, too many "
                "steps, or data that contradict it",
                remedy=f"lower {kind}: learning_rate or max_steps in curriculum.yaml, and look at "
                "the answers in phases/*.asked/answers.jsonl",
            )
        )
    return tuple(found)


def thaw_verdict(value: Mapping[str, Any]) -> Verdict:
    """Return the verdict that was written as JSON."""
    return Verdict(
        faults=tuple(Fault(**one) for one in value["faults"]),
        remarks=tuple(value["remarks"]),
        checked=value["checked"],
        unchecked=tuple(value["unchecked"]),
    )
