"""The recorded loss or gradient is no number, and the run went on.

What it does: looks for NaN and infinities in the logged loss, gradient norm and evaluation loss. A
few of them that pass are left alone: a loss scaler skips such steps, and goes on.

Why it is bad: from the first NaN that reaches the weights on, every later step keeps it there, and
the file that is saved is full of NaN though the run ended well (FM41). transformers hides it: with
`logging_nan_inf_filter` it logs a loss of 0.0, and only grad_norm says NaN.

Example: `{'loss': 0.0, 'grad_norm': nan, 'learning_rate': 0.0002, 'epoch': 0.4}`, to the end.

What to do: scan the weights (`mudpuppy-doctor` on the folder), take the last checkpoint before it
began, lower the learning rate, clip gradients, and train in bf16 or fp32 rather than fp16. When it
is NaN from the first step on, look at the labels: a row in which every label is -100 has no loss.
"""

from __future__ import annotations

import math

from harness.facts.records import TrainingLog
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe
from harness.weighing.record_series import show

NAMES = ("loss", "grad_norm", "train_loss", "eval_loss")
MANY = 0.5
"""Share of steps without a finite gradient that no loss scaler explains."""


@probe("MPD901", modes=["FM41", "FM09", "FM12"], severity=Severity.CRITICAL)
def check(training_log: TrainingLog) -> Finding | str:
    """Report series that end without a number, or hold none for most of the run."""
    known = [name for name in NAMES if training_log.series.get(name)]
    if not known:
        raise NotApplicable(f"{training_log.file} logs neither loss nor gradient")
    sick = [name for name in known if _is_sick(training_log.values(name), name)]
    if not sick:
        return f"{', '.join(known)} in {training_log.file} are numbers"
    first = sick[0]
    points = training_log.points(first)
    at = next(point.step for point in points if not math.isfinite(point.value))
    trains = first != "eval_loss"
    return Finding(
        message=f"{first} is {_name(training_log.values(first))} from step {at} of the run on",
        evidence=tuple(_describe(training_log, name) for name in sick),
        cause="the run diverged, fp16 overflowed, or batches had no label that trains"
        if trains
        else "an evaluation batch had no label that counts (cut at the maximum length), or "
        "overflowed",
        remedy="take a checkpoint from before that step; train again with a lower learning rate, "
        "max_grad_norm=1.0 and bf16, after a look at the labels of a batch"
        if trains
        else "look at the labels of the evaluation set: rows in which all are -100 have no loss",
        severity=Severity.CRITICAL if trains else Severity.MEDIUM,
    )


def _is_sick(values: tuple[float, ...], name: str) -> bool:
    wrong = [not math.isfinite(value) for value in values]
    if name in ("loss", "train_loss"):
        return wrong[-1] or sum(wrong) > MANY * len(wrong)
    if not all(wrong):
        # A loss scaler overflows until it has come down, and once in a while after that.
        wrong = wrong[wrong.index(False) :]
    lasting = len(wrong) >= 3 and all(wrong[-3:])
    return lasting or (sum(wrong) > MANY * len(wrong) and len(wrong) >= 2)


def _name(values: tuple[float, ...]) -> str:
    return "NaN" if any(math.isnan(value) for value in values) else "infinite"


def _describe(log: TrainingLog, name: str) -> Evidence:
    return show(log, name, "finite numbers")
