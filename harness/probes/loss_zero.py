"""The recorded loss, or the gradient, is zero throughout: nothing was trained.

What it does: asks whether the loss is exactly 0 in (nearly) every logged step, or the gradient norm
is. Runs on generated answers are left out: their loss is about 0 by construction.

Why it is bad: the file that is saved equals the model that the run began with (FM08, FM09).

Example: the collator does not find the response marker and sets every label to -100; the log says
`{'loss': 0.0, 'grad_norm': 0.0}` from the first step to the last.

What to do: print the labels of one batch. When they are right, look whether any parameter has
`requires_grad=True` after the adapter was attached, and whether gradient checkpointing was given
inputs that require gradients (`model.enable_input_require_grads()`).
"""

from __future__ import annotations

from harness.facts.records import TrainingLog
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe
from harness.weighing.record_series import show

LEAST = 2
"""Logged steps below which a zero may be the rounding of one."""
NEARLY_ALL = 0.9


@probe("MPD902", modes=["FM09", "FM08"], severity=Severity.CRITICAL)
def check(training_log: TrainingLog) -> Finding | str:
    """Report a loss or gradient norm of exactly zero."""
    log = training_log
    losses, norms = log.values("loss"), log.values("grad_norm")
    if not losses and log.series.get("train_loss") and log.is_language:
        return _check_mean(log)
    if not losses and not norms:
        raise NotApplicable(f"{log.file} logs neither loss nor gradient")
    if log.is_generating:
        raise NotApplicable("the loss of generated answers is about 0 whatever they are worth")
    # A loss of 0 beside a gradient of NaN is a NaN that was filtered, not a zero.
    is_filtered = any(value != value for value in norms)
    silent = [] if is_filtered or log.is_preference else _zeros(log, "loss", losses)
    silent += [] if is_filtered else _zeros(log, "grad_norm", norms)
    if not silent and not is_filtered and not log.is_preference and _fell_silent(losses, norms):
        silent = [show(log, "loss", "above 0"), show(log, "grad_norm", "above 0")]
        return _report(silent, "from some step on, for the rest of the run")
    if not silent:
        return f"loss and gradient in {log.file} are not zero"
    return _report(silent)


def _fell_silent(losses: tuple[float, ...], norms: tuple[float, ...]) -> bool:
    """Whether loss and gradient are both exactly 0 in the later half: no text is learnt so well."""
    half = len(losses) // 2
    if half < LEAST or len(norms) != len(losses):
        return False
    return not any(losses[half:]) and not any(norms[half:])


def _report(
    silent: list[Evidence], when: str = "from the first step to the last: nothing was trained"
) -> Finding:
    return Finding(
        message=f"{' and '.join(piece.what.split(' ')[0] for piece in silent)} stayed at 0 {when}",
        evidence=tuple(silent),
        cause="every label is -100 (the response marker is not found, or answers are cut off), or "
        "no trained parameter is connected to the loss",
        remedy="print the labels of one batch; then count the parameters with requires_grad=True",
    )


def _check_mean(log: TrainingLog) -> Finding | str:
    """Judge a run that logged no step by the mean that it ends with."""
    mean = log.values("train_loss")[-1]
    if mean != 0.0:
        return f"the mean training loss in {log.file} is {mean:.4g}"
    return _report([show(log, "train_loss", "above 0")])


def _zeros(log: TrainingLog, name: str, values: tuple[float, ...]) -> list[Evidence]:
    zero = sum(value == 0.0 for value in values)
    if len(values) < LEAST or values[0] != 0.0 or zero < NEARLY_ALL * len(values):
        return []
    return [show(log, name, "above 0")]
