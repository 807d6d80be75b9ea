"""One sample of a batch changes the answer to another.

What it does: reads a batch, changes its first row, reads it again, and compares the logits of all
other rows.

Why it is bad: answers bleed from one user to the next (FM38). Packed training without a mask of
blocks teaches a model to look at its neighbours.

Example: after a change of row 1 the logits of rows 2 to 4 move by 0.08 of their size.

What to do: serve one prompt at a time until it is found; look for custom kernels and hooks; train
packed rows only with a mask of blocks, as `mud-puppy --packing` does.
"""

from __future__ import annotations

from harness.facts.forward import Consistency
from harness.findings import Finding, Severity
from harness.registry import probe
from harness.weighing.parity import judge_gap


@probe("MPD612", modes=["FM38"], severity=Severity.HIGH)
def check(consistency: Consistency) -> Finding | str:
    """Compare rows beside one neighbour with the same rows beside another."""
    return judge_gap(
        consistency,
        "neighbour",
        "logits beside two neighbours",
        cause="a mask that does not separate rows, or state that one row leaves for the next",
        remedy="try attn_implementation='eager'; train packed samples with a mask of blocks",
    )
