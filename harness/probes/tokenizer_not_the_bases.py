"""The tokenizer gives the words of the base other ids, or cuts texts in another way.

What it does: compares tokenizer.json with that of the base: the id of every token, the merges, the
normalizer, the pre-tokenizer, the decoder. Added tokens are fine, and so are reserved tokens with
a new name, and the same thing written in another way.

Why it is bad: the embedding belongs to the ids of the base. A moved token is another word to the
model; merges and pre-tokenizers that differ make pieces it was never trained on. llama.cpp does not
convert a pre-tokenizer whose hash it does not know (FM49).

Example: the tokenizer was trained anew for a fine-tuning, or came from another release.

What to do: copy tokenizer.json from the base model, and add tokens with
`tokenizer.add_tokens(...)`, which appends them.
"""

from __future__ import annotations

from harness.facts.chat import TokenizerChange
from harness.findings import Evidence, Finding, Severity, agree
from harness.registry import probe

FILE = "tokenizer.json"


@probe("MPD819", modes=["FM49", "FM11"], severity=Severity.HIGH)
def check(tokenizer_change: TokenizerChange) -> Finding | str:
    """Report moved and lost tokens, other merges and another way of cutting."""
    change = tokenizer_change
    evidence = [
        Evidence(what=f"id of {text[:40]!r}", file=FILE, found=new, expected=old)
        for text, (old, new) in change.moved.items()
    ]
    evidence += [
        Evidence(what="token of the base", file=FILE, found="absent", expected=repr(text[:40]))
        for text in change.removed
    ]
    if change.merges:
        evidence.append(Evidence(what="merges", file=FILE, found=change.merges))
    evidence += [
        Evidence(what=part, file=FILE, found=new[:200] or "none", expected=old[:200] or "none")
        for part, (old, new) in change.parts.items()
    ]
    if not evidence:
        return f"{change.tokens:,} tokens are those of the base, {change.added:,} are new"
    whole = not (change.moved_count or change.removed_count or change.merges)
    rebuilt = whole and bool(change.rebuilt_as)
    return Finding(
        message=f"the tokenizer is not the base's: {_say(change)}",
        evidence=tuple(evidence),
        cause=f"transformers loads the base's tokenizer as {change.rebuilt_as} as well, which has "
        "rules of its own; only other readers of the base cut texts as its file says"
        if rebuilt
        else "it was trained or built anew, or belongs to another release of the base",
        remedy="copy tokenizer.json from the base model; add tokens with tokenizer.add_tokens(...)",
        severity=Severity.NOTE
        if rebuilt
        else Severity.CRITICAL
        if change.moved_count > change.tokens
        else Severity.HIGH,
    )


def _say(change: TokenizerChange) -> str:
    if change.moved_count:
        return agree(change.moved_count, "token has another id", "tokens have other ids")
    if change.removed_count:
        return agree(change.removed_count, "token is gone", "tokens are gone")
    if change.merges:
        return change.merges
    return f"another {' and another '.join(change.parts)}"
