"""The rows that were trained are not the dataset's, or did not come in turn.

What it does: renders the dataset by itself and compares every row of every batch with it, token by
token and label by label; counts that each comes once an epoch, none that is held out, in batches of
the size that is asked for.

Why it is bad: a mask that is off by one, rows that are skipped or come twice, or an evaluation on
rows that were trained leave no trace in the loss (FM02, FM09, FM10).

Example: a resumed epoch starts again from its first row: the last ones are never seen.

What to do: print the row named, and look at the renderer, the sampler and the collator.
"""

from __future__ import annotations

from harness.findings import Finding, Severity
from harness.observations import Observations
from harness.registry import probe
from harness.weighing.twin_evidence import as_evidence, require_twin


@probe("MPD725", modes=("FM02", "FM09", "FM10"), severity=Severity.CRITICAL)
def check(observations: Observations) -> Finding | str:
    """Fail when a row is not the dataset's, or not in its turn."""
    twin = require_twin(observations, "rows")
    if not twin.rows:
        return f"{twin.rows_seen} rows, each the dataset's and in its turn"
    wrong = [as_evidence(one) for one in twin.rows]
    return Finding(
        message=f"{wrong[0].what}: found {wrong[0].found}, expected {wrong[0].expected}",
        evidence=tuple(wrong[:8]),
        cause="rendering, the label mask, the sampler or the collator does something else",
        remedy="print the row and compare it with the template; then look at sampler and collator",
    )
