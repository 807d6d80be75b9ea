"""A special token that is not in the vocabulary.

What it does: looks up every special token that tokenizer_config.json and special_tokens_map.json
name (end, begin, padding and others), and every special id of config.json and
generation_config.json, in the vocabulary.

Why it is bad: transformers adds an unknown token behind the last one. Its id may have no row in the
embedding, which stops a GPU with a device-side assert, or has a row that nobody trained: an end
token of that kind is never produced, and answers run on (FM01, FM11).

Example: `eos_token: <|im_end|>` was copied from a chat model; the tokenizer of the base has 32,000
tokens and not this one.

What to do: put the tokenizer files of one model together again; or add the token before training,
with `tokenizer.add_special_tokens(...)` and `model.resize_token_embeddings(len(tokenizer))`.
"""

from __future__ import annotations

from harness.facts.files import SpecialTokens
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe

_ENDS = ("eos_token", "pad_token", "bos_token")


@probe("MPD804", modes=["FM01", "FM11"], severity=Severity.CRITICAL)
def check(special_tokens: SpecialTokens) -> Finding | str:
    """Report special tokens without an id of their own, and special ids without a token."""
    facts = special_tokens
    evidence = [
        Evidence(
            what=f"{role}, which gets the new id {facts.next_id + number:,}",
            file=facts.file,
            found=repr(text[:60]),
            expected="a token of the vocabulary"
            + (
                f", whose ids end below the {facts.rows:,} rows of the embedding"
                if facts.rows is not None
                else ""
            ),
        )
        for number, (role, text) in enumerate(facts.unknown.items())
    ]
    evidence += [
        Evidence(what=role, file="config.json", found=number, expected="the id of a token")
        for role, number in facts.unnamed_ids.items()
    ]
    if not evidence:
        return f"the vocabulary has all {facts.named} special tokens"
    return Finding(
        message=_say(facts),
        evidence=tuple(evidence),
        cause="the files of two tokenizers were mixed, or a token was named and never added",
        remedy="copy all tokenizer files and config.json from one model, or add the token before "
        "training: tokenizer.add_special_tokens(...), then "
        "model.resize_token_embeddings(len(tokenizer))",
        severity=_weigh(facts),
    )


def _say(facts: SpecialTokens) -> str:
    if not facts.unknown:
        role, number = next(iter(facts.unnamed_ids.items()))
        return f"{role} is {number:,}, and no token of the tokenizer has that id"
    role, text = next(iter(facts.unknown.items()))
    last = facts.next_id + len(facts.unknown) - 1
    if facts.rows is not None and last >= facts.rows:
        why = f"its new id lies beyond the {facts.rows:,} rows of the embedding"
    else:
        why = "it gets a new id that was never trained"
    return f"{role} {text[:60]!r} is not in the vocabulary, so {why}"


def _weigh(facts: SpecialTokens) -> Severity:
    last = facts.next_id + len(facts.unknown) - 1
    if facts.unknown and facts.rows is not None and last >= facts.rows:
        return Severity.CRITICAL
    if any(role in _ENDS for role in facts.unknown):
        return Severity.HIGH
    ends = [role for role in facts.unnamed_ids if "eos" in role]
    return Severity.HIGH if ends and not facts.has_known_end else Severity.NOTE
