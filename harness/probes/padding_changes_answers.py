"""Padding in a batch changes the answers.

What it does: reads prompts of unlike lengths alone, and as one batch padded on the left with mask
and position ids, in fp32 where that fits into memory, and compares all logits.

Why it is bad: a server pads when it batches: the padded rows get garbage and the others do not
(FM56), so that tests with one prompt at a time see nothing.

Example: alone and in a batch the logits of three of four prompts differ by 0.6 of their size.

What to do: set `padding_side` to `left` and a pad token of its own; try another
`attn_implementation`; update transformers.
"""

from __future__ import annotations

from harness.facts.forward import Consistency
from harness.findings import Finding, Severity
from harness.registry import probe
from harness.weighing.parity import judge_gap


@probe("MPD611", modes=["FM56"], severity=Severity.HIGH)
def check(consistency: Consistency) -> Finding | str:
    """Compare padded rows with the same rows alone."""
    return judge_gap(
        consistency,
        "padding",
        "logits of padded and of single rows",
        cause="the mask or the position ids are not used, or padding is read as text",
        remedy="set padding_side to left and a pad token; try attn_implementation='eager'",
    )
