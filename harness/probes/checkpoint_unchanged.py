"""A checkpoint that holds exactly what the one before it held.

What it does: compares the values of a `checkpoint-N` with those of the one before it, and, for
adapters, module by module.

Why it is bad: steps were counted and nothing moved: the optimizer holds other tensors than the
model, every gradient was zero, or the same object was saved twice (FM08, FM09). Where only some
modules stand still, the gradient does not reach them.

Example: all 128 tensors of checkpoint-400 are byte for byte those of checkpoint-200.

What to do: look at grad_norm and learning_rate of the log between the two steps, and at
`model.print_trainable_parameters()` after resuming.
"""

from __future__ import annotations

from harness.facts.outputs import Motion
from harness.findings import Evidence, Finding, Severity, agree
from harness.registry import probe


@probe("MPD113", modes=["FM08", "FM09", "FM14"], severity=Severity.HIGH)
def check(checkpoint_motion: Motion) -> Finding | str:
    """Look for a checkpoint, or modules of an adapter, that did not move."""
    motion = checkpoint_motion
    if motion.is_identical:
        return _finding(
            f"every one of {motion.compared} tensors is byte for byte that of {motion.earlier}: "
            "nothing was learnt between the two",
            [Evidence(what="tensors that differ", found=0, expected="at least 1")],
            Severity.HIGH,
        )
    if not motion.still:
        return f"its weights moved since {motion.earlier}"
    return _finding(
        f"{agree(len(motion.still), 'module has', 'modules have')} not moved since "
        f"{motion.earlier}, such as {motion.still[0]}, while others did",
        [
            Evidence(what="both factors are the same", tensor=name, found="no change")
            for name in motion.still
        ],
        Severity.MEDIUM,
    )


def _finding(message: str, evidence: list[Evidence], severity: Severity) -> Finding:
    return Finding(
        message=message,
        evidence=tuple(evidence),
        cause="no gradient arrived, the learning rate was 0, or the optimizer moves other tensors "
        "than those that are saved",
        remedy="look at grad_norm and learning_rate between the two steps, and at "
        "model.print_trainable_parameters() after resuming",
        severity=severity,
    )
