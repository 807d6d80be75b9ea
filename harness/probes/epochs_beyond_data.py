"""Advice: the run saw its rows more often than is usual for so many.

What it does: compares the epochs with the number of training rows, as far as the record tells it. A
widely used guide to LoRA takes 5 to 10 epochs for less than 1,000 rows, 3 to 5 up to 10,000 and 1
to 3 beyond.

Why it is bad: it is advice, no fault: later epochs mostly learn rows by heart (FM15).

Example: 8 epochs over 50,000 rows.

What to do: evaluate after every epoch on rows that were held out, and stop where it turns.
"""

from __future__ import annotations

from harness.facts.records import TrainingLog
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe
from mudpuppy.tuning import advise

REAL_RUN = 50
"""Optimizer steps from which a run is more than a trial."""


@probe("MPD942", modes=["FM15"], severity=Severity.NOTE)
def check(training_log: TrainingLog) -> Finding | str:
    """Note more epochs than the guide's."""
    log = training_log
    steps = max((p.step for p in log.points("loss")), default=0)
    if log.samples is None or log.epochs is None or steps < REAL_RUN or log.is_generating:
        raise NotApplicable("the number of rows or epochs is not known, or it was a trial")
    upper = advise(log.samples).epochs[1]
    if log.epochs <= upper + 0.5:
        return f"{log.epochs:.3g} epochs over about {log.samples:,.0f} rows"
    return Finding(
        message=f"{log.epochs:.3g} epochs over about {log.samples:,.0f} rows; up to {upper} are "
        "usual",
        evidence=(
            Evidence(
                what="epochs", file=log.file, found=round(log.epochs, 2), expected=f"up to {upper}"
            ),
        ),
        cause="the number of epochs was taken over from a smaller set",
        remedy="evaluate on held-out rows after every epoch, and stop where the loss turns",
    )
