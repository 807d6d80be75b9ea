"""Evidence about a tokenizer, read from its JSON without the library that made it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from harness.evidence.files.inventory import read_settings
from harness.evidence.source import CheckpointEvidence, provides
from harness.evidence.text.pieces import read_pieces
from harness.facts.checkpoint import Files, Tokenizer
from harness.registry import Missing

PIECES = "tokenizer.model"
"""The sentencepiece model of Llama, Mistral, Gemma and their kin, whose ids are its order."""
UNREAD = ("tekken.json", "spiece.model", "sentencepiece.bpe.model", "vocab.txt", "qwen.tiktoken")
"""Vocabularies whose ids are not told by the file alone, or not in JSON."""


@provides("tokenizer")
def describe_tokenizer(evidence: CheckpointEvidence) -> Tokenizer:
    """Return how many tokens the tokenizer has and the largest id that it can emit."""
    ids: Mapping[str, int] = evidence.get("token_ids")
    files: Files = evidence.get("files")
    top = max(ids, key=lambda token: ids[token])
    return Tokenizer(file=_source(files), max_id=ids[top], max_token=top)


@provides("token_ids")
def list_ids(evidence: CheckpointEvidence) -> dict[str, int]:
    """Return every token and its id.

    Raises:
        Missing: there is no vocabulary that can be read here.
    """
    files: Files = evidence.get("files")
    source = _source(files)
    if source == PIECES:
        ids = dict(read_pieces(evidence.folder / source))
    else:
        settings = read_settings(evidence, source)
        whole = source == "tokenizer.json"
        ids = dict(_vocabulary(settings) if whole else _pairs(settings.items()))
    if source != "tokenizer.json" and "added_tokens.json" in files.names:
        ids.update(_pairs(read_settings(evidence, "added_tokens.json").items()))
    if not ids:
        raise Missing(f"{source} holds no vocabulary that can be read here")
    return ids


def _source(files: Files) -> str:
    """Return the file that holds the vocabulary, the one that loaders prefer.

    Raises:
        Missing: there is one of a form that is not read here.
    """
    found = next((n for n in ("tokenizer.json", "vocab.json", PIECES) if n in files.names), "")
    if not found and (other := next((n for n in UNREAD if n in files.names), "")):
        raise Missing(f"the vocabulary in {other} is of a form that is not read here")
    return found or "tokenizer.json"


def _vocabulary(settings: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield token and id from the forms that tokenizer.json has: a mapping, or a list of scores."""
    model = settings.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, dict):
        yield from _pairs(vocab.items())
    elif isinstance(vocab, list):
        for number, entry in enumerate(vocab):
            if isinstance(entry, list) and entry and isinstance(entry[0], str):
                yield entry[0], number
    added = settings.get("added_tokens")
    for entry in added if isinstance(added, list) else ():
        if isinstance(entry, dict):
            yield from _pairs([(entry.get("content"), entry.get("id"))])


def _pairs(items: Iterable[tuple[Any, Any]]) -> Iterator[tuple[str, int]]:
    for token, number in items:
        if isinstance(token, str) and type(number) is int and number >= 0:
            yield token, number
