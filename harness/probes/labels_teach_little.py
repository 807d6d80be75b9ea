"""The counted labels teach nothing, or nothing but the end of answers.

What it does: reads the counts of labels that this project's engine writes into mudpuppy.json: how
many tokens trained, and how many of those end a turn.

Why it is bad: without a label that trains the loss is 0 or NaN and the model stays what it was
(FM09). Where most labels are the end of a turn, as when padding with the EOS token is not masked,
the model learns to say nothing (FM40).

Example: eos_tokens 30,112 of 41,906 trained tokens: every row is padded with EOS to its full width.

What to do: print the labels of one batch; mask padding by position, and look whether the answers
lie within max_length.
"""

from __future__ import annotations

from harness.facts.files import Manifest
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe

FILE = "mudpuppy.json"
MOST = 0.6
"""Share of ends: answers of a single token have one half."""


@probe("MPD931", modes=["FM09", "FM40"], severity=Severity.CRITICAL)
def check(manifest: Manifest) -> Finding | str:
    """Report labels of which none trains, or most are ends."""
    if manifest.value.get("method") == "grpo":
        raise NotApplicable("its dataset holds prompts alone; the model writes the answers")
    labels = manifest.value.get("labels")
    counts = labels if isinstance(labels, dict) else {}
    numbers = [counts.get(name) for name in ("tokens", "trained_tokens", "eos_tokens")]
    tokens, trained, ends = (n if type(n) is int and n >= 0 else None for n in numbers)
    if tokens is None or trained is None or ends is None or tokens == 0:
        raise NotApplicable("the record counts no labels of answers")
    if trained > 0 and ends <= MOST * trained:
        return f"{trained:,} of {tokens:,} tokens trained, {ends:,} of them the end of a turn"
    if trained == 0:
        message = f"none of {tokens:,} tokens had a label that trains"
        cause = "the response marker was not found, or max_length cuts every answer off"
    else:
        message = f"{ends:,} of {trained:,} trained tokens are the end of a turn"
        cause = "padding with the EOS token is not masked, or the answers are empty"
    return Finding(
        message=message,
        evidence=(
            Evidence(what="trained tokens", file=FILE, found=trained, expected="above 0"),
            Evidence(
                what="of them ends of a turn",
                file=FILE,
                found=ends,
                expected=f"at most {MOST:.0%} of them",
            ),
        ),
        cause=cause,
        remedy="print the labels of one batch, mask padding by position, and train again",
    )
