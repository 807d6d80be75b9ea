"""Tokenizer, configuration and weights disagree about the size of the vocabulary.

What it does: compares the largest id of the tokenizer, `vocab_size`, and the rows of the embedding
and of the head.

Why it is bad: a token id beyond the last row stops a GPU with a device-side assert or reads other
memory; rows that differ from `vocab_size` do not load (FM11). Tokens were added to the tokenizer
and the embedding was not resized, or the reverse. More rows than tokens are fine: many models pad.

Example: tokenizer max id 32,001, embedding 32,000 rows.

What to do: `model.resize_token_embeddings(len(tokenizer))` before training, and save model and
tokenizer together; or put the tokenizer of the base model back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.facts.checkpoint import Tokenizer, Vocabulary
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, probe

FILE = "config.json"


@probe("MPD801", modes=["FM11"], severity=Severity.HIGH)
def check(vocabulary: Vocabulary) -> Finding | str:
    """Compare all sizes that are known."""
    tokenizer, rows, declared = vocabulary.tokenizer, vocabulary.rows, vocabulary.declared
    known = [tokenizer is not None, bool(rows), declared is not None]
    if sum(known) < 2:
        raise Missing("fewer than two of tokenizer, vocab_size and embedding are known")
    evidence = _compare_rows(rows, declared)
    if tokenizer is not None:
        # Without a tokenizer, ids beyond the rows are the defaults of the class and mean nothing.
        evidence += _compare_ids(vocabulary.special, rows, declared)
        evidence += _compare_tokenizer(tokenizer, rows, declared)
    if not evidence:
        return "tokenizer, vocab_size and embedding fit each other"
    first = evidence[0]
    place = f" of {first.tensor}" if first.tensor else ""
    return Finding(
        message=f"{first.what}{place}: {first.found:,}, expected {first.expected}",
        evidence=tuple(evidence),
        cause="tokens were added without resizing the embedding, or the files of two models mixed",
        remedy="model.resize_token_embeddings(len(tokenizer)) and save both together, or put the "
        "tokenizer and config.json of the base model back",
    )


def _compare_rows(rows: Mapping[str, int], declared: int | None) -> list[Evidence]:
    if declared is None and len(set(rows.values())) < 2:
        return []
    want = declared if declared is not None else next(iter(rows.values()))
    return [
        Evidence(what="rows", tensor=name, found=n, expected=f"{want:,} (vocab_size)")
        for name, n in rows.items()
        if n != want
    ]


def _compare_tokenizer(
    tokenizer: Tokenizer, rows: Mapping[str, int], declared: int | None
) -> list[Evidence]:
    limit = min(rows.values()) if rows else declared
    if limit is None or tokenizer.max_id < limit:
        return []
    return [
        Evidence(
            what=f"largest id of the tokenizer ({tokenizer.max_token[:40]!r})",
            file=tokenizer.file,
            found=tokenizer.max_id,
            expected=f"below {limit:,}, the rows of the embedding",
        )
    ]


def _compare_ids(
    special: Mapping[str, int], rows: Mapping[str, int], declared: int | None
) -> list[Evidence]:
    limit: Any = max(rows.values()) if rows else declared
    return [
        Evidence(what=name, file=FILE, found=number, expected=f"below {limit:,}")
        for name, number in special.items()
        if limit is not None and number >= limit
    ]
