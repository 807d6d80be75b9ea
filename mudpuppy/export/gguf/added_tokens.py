"""The texts of all rows as a GGUF file lists them, and of which kind each is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mudpuppy.errors import ModelError
from mudpuppy.export.gguf.pretokenizers import merge_pairs
from mudpuppy.export.gguf.tokenizer_source import Source
from mudpuppy.export.gguf.vocabulary_codes import TWICE
from mudpuppy.sentencepiece_file import BYTE, CONTROL, NORMAL, UNUSED, USER_DEFINED

LOOKS_SPECIAL = re.compile(
    r"<\|.*\|>|<｜.*｜>|<unused.*>|<pad>|<mask>|<2mass>|\[@BOS@\]", flags=re.DOTALL
)
"""Added tokens that are special by their text, whatever the tokenizer says (as llama.cpp's
converter takes them: Gemma, DeepSeek and Command-R do not mark theirs)."""
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
BLANK = "▁"
PHI3_KEEPS = ("<unk>", "<s>", "<|endoftext|>")
"""Special tokens of Phi-3 after which blanks stay."""


@dataclass(frozen=True)
class TokenKinds:
    """Every row's text and kind."""

    texts: tuple[str, ...]
    """The text of every row; `[PADn]` where the tokenizer has none."""
    kinds: tuple[int, ...]
    """The kind of every row."""
    added: frozenset[str]
    """Texts that are looked for before anything else, as the tokenizer has them."""
    strips_blanks: bool
    """Whether blanks after special tokens go, as in Phi-3."""
    notes: tuple[str, ...] = ()
    """What llama.cpp does otherwise."""


def classify_tokens(source: Source, texts: Mapping[int, str], num_rows: int) -> TokenKinds:
    """Return text and kind of every row of the embedding.

    Args:
        source: the tokenizer.
        texts: its tokens by id; every id is below `num_rows`.
        num_rows: rows of the embedding.

    Raises:
        ModelError: two rows would have one text; llama.cpp stops at such a file.
    """
    added = _looked_for(source.document)
    has_byte_tokens = bool(source.document["model"].get("byte_fallback"))
    rows: list[str] = []
    kinds: list[int] = []
    taken = set(texts.values())
    for number in range(num_rows):
        if number not in texts:
            rows.append(_padding(number, taken))
            kinds.append(UNUSED)
        elif number in added:
            text, kind = _added(added[number])
            rows.append(text)
            kinds.append(kind)
        else:
            is_byte = has_byte_tokens and BYTE_TOKEN.fullmatch(texts[number])
            rows.append(texts[number])
            kinds.append(BYTE if is_byte else NORMAL)
    _check_twice(source, rows)
    strips = _strips_like_phi3(list(added.values()))
    return TokenKinds(
        texts=tuple(rows),
        kinds=tuple(kinds),
        added=frozenset(token["content"] for token in added.values()),
        strips_blanks=strips,
        notes=_notes(list(added.values()), strips),
    )


def _looked_for(document: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """Return the added tokens that are looked for in text, by id.

    Gemma's runs of blanks are added tokens, written as sentencepiece writes blanks, and so they are
    never found in text: its blanks are still blanks there. Merges put them together.
    """
    model = document["model"]
    merged = {left + right for left, right in merge_pairs(model)}
    idle = merged if model.get("byte_fallback") else set()
    return {
        token["id"]: token
        for token in document.get("added_tokens") or ()
        if token.get("special") or BLANK not in token["content"] or token["content"] not in idle
    }


def _padding(number: int, taken: set[str]) -> str:
    """Return a text for a row without a token that no token has."""
    text = f"[PAD{number}]"
    while text in taken:
        text += "_"
    return text


def _added(token: Mapping[str, Any]) -> tuple[str, int]:
    """Return text and kind of an added token."""
    text: str = token["content"]
    if token.get("special") or LOOKS_SPECIAL.fullmatch(text):
        return text, CONTROL
    # llama.cpp looks for these in text whose blanks are still blanks
    return text.replace(BLANK, " "), USER_DEFINED


def _check_twice(source: Source, rows: list[str]) -> None:
    if len(set(rows)) == len(rows):
        return
    twice = next(text for text, count in Counter(rows).items() if count > 1)
    numbers = [number for number, text in enumerate(rows) if text == twice]
    raise ModelError(
        f"{TWICE}: {source.folder}: the token {twice!r} has the ids {numbers[0]} and {numbers[1]} "
        "(blanks are written as blanks); llama.cpp stops at that",
        hint="rename one of them in tokenizer.json",
    )


def _strips_like_phi3(added: list[Mapping[str, Any]]) -> bool:
    """Return whether blanks are taken away where llama.cpp does it for Phi-3."""
    strips = {token["content"]: bool(token.get("rstrip")) for token in added}
    if not strips.keys() >= {"</s>", *PHI3_KEEPS}:
        return False
    return all(strip == (text not in PHI3_KEEPS) for text, strip in strips.items())


def _notes(added: list[Mapping[str, Any]], strips_like_phi3: bool) -> tuple[str, ...]:
    """Return what llama.cpp does otherwise around added tokens."""
    sides = [t["content"] for t in added if t.get("lstrip") or t.get("rstrip")]
    words = [t["content"] for t in added if t.get("single_word")]
    notes = []
    if sides and not strips_like_phi3:
        notes.append(
            f"blanks beside {_some(sides)} are part of the token here, and not in llama.cpp"
        )
    if words:
        notes.append(f"{_some(words)} are read as whole words here, and inside words by llama.cpp")
    return tuple(notes)


def _some(texts: list[str]) -> str:
    shown = ", ".join(repr(text) for text in texts[:3])
    return shown if len(texts) <= 3 else f"{shown} and {len(texts) - 3} more"
