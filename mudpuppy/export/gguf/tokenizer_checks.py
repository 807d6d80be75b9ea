"""Whether a tokenizer.json is whole: parts, ids, merges and texts, checked before they are used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mudpuppy.errors import ModelError, printable
from mudpuppy.export.gguf.vocabulary_codes import DAMAGED, TWICE, UNKNOWN_KIND

FROM_BASE = "copy the tokenizer files of the base model into the folder"
"""What to do where a file is missing or damaged."""
MOST_WITHOUT_MERGES = 300
"""Tokens of a vocabulary of bytes and special tokens, which needs no merges."""


def check_kind(document: Mapping[str, Any], path: Path) -> None:
    """Look whether a tokenizer.json describes a BPE that llama.cpp can stand for.

    Raises:
        ModelError: it does not, or has no model.
    """
    model = document.get("model")
    if not isinstance(model, Mapping):
        raise ModelError(f"{DAMAGED}: {path}: it has no model", hint=FROM_BASE)
    kind = model.get("type", "BPE" if "merges" in model else "WordPiece")
    if kind != "BPE":
        raise ModelError(
            f"{UNKNOWN_KIND}: {path}: the tokenizer is a {printable(str(kind))}, and what is "
            "exported here are byte-level BPE and the BPE of sentencepiece",
            hint="export a model of the Llama, Mistral, Qwen, Gemma or Phi families",
        )
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise ModelError(
            f"{UNKNOWN_KIND}: {path}: pieces inside a word are marked with "
            f"{model.get('continuing_subword_prefix') or model.get('end_of_word_suffix')!r}, which "
            "llama.cpp does not know",
            hint="export a model of the Llama, Mistral, Qwen, Gemma or Phi families",
        )


def check_parts(document: Mapping[str, Any], path: Path) -> None:
    """Look whether the model of a tokenizer.json is whole.

    Raises:
        ModelError: a part is missing, has the wrong form, or contradicts another.
    """
    model = document["model"]
    vocabulary, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocabulary, Mapping) or not vocabulary:
        raise ModelError(f"{DAMAGED}: {path}: the model has no vocab", hint=FROM_BASE)
    if not isinstance(merges, list) or (not merges and len(vocabulary) > MOST_WITHOUT_MERGES):
        raise ModelError(
            f"{DAMAGED}: {path}: the model has no merges, so that no word would be put together",
            hint=FROM_BASE,
        )
    added = document.get("added_tokens") or []
    _check_ids(path, vocabulary, added)
    _check_merges(path, vocabulary, merges)
    _check_texts(path, [*vocabulary, *(token["content"] for token in added)])


def _check_ids(path: Path, vocabulary: Mapping[str, Any], added: Any) -> None:
    """Raise ModelError where ids are no numbers, or one number belongs to two tokens."""
    if not isinstance(added, list) or not all(_is_added(token) for token in added):
        raise ModelError(
            f"{DAMAGED}: {path}: added_tokens has an entry without a content and an id",
            hint=FROM_BASE,
        )
    texts: dict[int, str] = {}
    pairs = [*vocabulary.items(), *((token["content"], token["id"]) for token in added)]
    for text, number in pairs:
        if type(number) is not int or not 0 <= number < 1 << 31:
            raise ModelError(
                f"{DAMAGED}: {path}: the id of the token {_said(text)} is no number",
                hint=FROM_BASE,
            )
        if texts.setdefault(number, text) != text:
            raise ModelError(
                f"{TWICE}: {path}: the id {number} belongs to two tokens, {_said(texts[number])} "
                f"and {_said(text)}",
                hint=FROM_BASE,
            )
    numbers = dict(vocabulary)
    for token in added:
        if numbers.setdefault(token["content"], token["id"]) != token["id"]:
            raise ModelError(
                f"{TWICE}: {path}: the token {_said(token['content'])} has two ids, "
                f"{numbers[token['content']]} and {token['id']}; llama.cpp stops at that",
                hint=FROM_BASE,
            )


def _is_added(token: Any) -> bool:
    return (
        isinstance(token, Mapping)
        and isinstance(token.get("content"), str)
        and type(token.get("id")) is int
    )


def _check_merges(path: Path, vocabulary: Mapping[str, int], merges: list[Any]) -> None:
    """Raise ModelError where a merge is no pair of tokens that gives a token."""
    if _are_whole(vocabulary, merges):
        return
    for number, one in enumerate(merges):
        pair = one.split(" ", 1) if isinstance(one, str) else one
        is_pair = isinstance(pair, list) and len(pair) == 2
        if not is_pair or not all(isinstance(part, str) and part for part in pair):
            raise ModelError(
                f"{DAMAGED}: {path}: merge {number} is no pair of texts", hint=FROM_BASE
            )
        lacking = next((t for t in (*pair, pair[0] + pair[1]) if t not in vocabulary), None)
        if lacking is not None:
            raise ModelError(
                f"{DAMAGED}: {path}: merge {number} needs the token {_said(lacking)}, which the "
                "vocabulary lacks",
                hint=FROM_BASE,
            )


def _are_whole(vocabulary: Mapping[str, int], merges: list[Any]) -> bool:
    """Return whether nothing is wrong with the merges; which is the wrong one takes longer."""
    try:
        pairs = [one.split(" ", 1) if isinstance(one, str) else one for one in merges]
        return all(
            left in vocabulary and right in vocabulary and left + right in vocabulary
            for left, right in pairs
        )
    except (TypeError, ValueError):
        return False


def _check_texts(path: Path, texts: list[str]) -> None:
    """Raise ModelError where a token cannot be written as UTF-8."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ModelError(
                f"{DAMAGED}: {path}: the token {ascii(text)[:80]} is no valid UTF-8",
                hint=FROM_BASE,
            ) from error


def _said(text: str) -> str:
    return ascii(text) if len(text) <= 40 else ascii(text[:40]) + "..."
