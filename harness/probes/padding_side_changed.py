"""Padding is on the other side than with the base.

What it does: compares `padding_side` of tokenizer_config.json with the base's, where both write it.

Why it is bad: models that generate are padded on the left. With padding on the right the first new
token follows padding, and only batches with texts of several lengths show it: "A decoder-only
architecture is being used, but right-padding was detected!" (FM56).

Example: `tokenizer.padding_side = "right"` for training, saved with the model.

What to do: write `"padding_side": "left"` into tokenizer_config.json, or set it when generating.
"""

from __future__ import annotations

from harness.facts.chat import Naming
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, probe

FILE = "tokenizer_config.json"


@probe("MPD827", modes=["FM56"], severity=Severity.NOTE)
def check(naming: Naming, base_naming: Naming | None) -> Finding | str:
    """Compare the two sides."""
    if base_naming is None:
        raise Missing("right or left is a habit; without the base nothing says which: --base PATH")
    mine, theirs = (one.settings.get("padding_side") for one in (naming, base_naming))
    if mine != "right" or theirs != "left":
        return f"padding_side is {str(mine)[:20]}, that of the base {str(theirs)[:20]}"
    return Finding(
        message="padding_side is right, and left in the base: batches of several lengths generate "
        "after padding",
        evidence=(Evidence(what="padding_side", file=FILE, found="right", expected="left"),),
        cause="it was set for training and saved with the tokenizer",
        remedy=f'write "padding_side": "left" into {FILE}',
    )
