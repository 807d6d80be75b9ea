"""The tokenizer names a token for the unknown that it does not have.

What it does: looks up `unk_token` of the model in tokenizer.json (`unk_id` for Unigram) in its
vocabulary. Byte-level tokenizers need none.

Why it is bad: the first character that the vocabulary lacks is dropped without a word, or stops the
encoding with "unk_token ... is not in the vocabulary" (FM11).

Example: `[UNK]` was renamed in the vocabulary and not in the model.

What to do: copy tokenizer.json from the base model.
"""

from __future__ import annotations

from harness.facts.chat import Unknown
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe

FILE = "tokenizer.json"


@probe("MPD826", modes=["FM11"], severity=Severity.MEDIUM)
def check(unknown_token: Unknown) -> Finding | str:
    """Report an unknown token that is not there."""
    if unknown_token.is_there:
        return f"the unknown token of the {unknown_token.kind} model is {unknown_token.named[:40]}"
    return Finding(
        message=f"the {unknown_token.kind} model names {unknown_token.named[:40]} for what it does "
        "not know, and has no such token",
        evidence=(
            Evidence(what="unk", file=FILE, found=unknown_token.named[:60], expected="a token"),
        ),
        cause="the vocabulary was edited by hand, or built without its unknown token",
        remedy="copy tokenizer.json from the base model",
    )
