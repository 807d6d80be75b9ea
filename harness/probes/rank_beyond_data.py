"""Advice: the rank of the adapter is high for so little data.

What it does: compares the rank with the number of training rows, as far as the record tells it. A
widely used guide to LoRA takes 8 to 16 for less than 1,000 rows, 32 to 64 up to 10,000 and 128 to
256 beyond; twice its upper value is noted.

Why it is bad: it is advice, no fault: a rank beyond what the rows can fill learns them by heart
(FM15) and costs memory.

Example: rank 256 on 400 rows.

What to do: train once with rank 16 and compare the evaluation losses.
"""

from __future__ import annotations

from harness.facts.checkpoint import Adapter
from harness.facts.records import TrainingLog
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe
from mudpuppy.tuning import advise

REAL_RUN = 50
"""Optimizer steps from which a run is more than a trial."""


@probe("MPD941", modes=["FM15"], severity=Severity.NOTE)
def check(training_log: TrainingLog, adapter: Adapter) -> Finding | str:
    """Note a rank of more than twice the guide's."""
    rank, rows = adapter.settings.get("r"), training_log.samples
    steps = max((p.step for p in training_log.points("loss")), default=0)
    if type(rank) is not int or not adapter.is_lora or rows is None or steps < REAL_RUN:
        raise NotApplicable("rank, number of rows or steps are not known, or it was a trial")
    upper = advise(rows).ranks[1]
    if rank <= 2 * upper:
        return f"rank {rank} for about {rows:,.0f} rows"
    return Finding(
        message=f"rank {rank} for about {rows:,.0f} training rows; up to {upper} is usual",
        evidence=(
            Evidence(what="r", file="adapter_config.json", found=rank, expected=f"up to {upper}"),
            Evidence(what="training rows", file=training_log.file, found=round(rows)),
        ),
        cause="the rank was taken over from a larger set",
        remedy=f"train once with rank {upper} and compare the evaluation losses",
    )
