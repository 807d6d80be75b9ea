"""The special tokens of a GGUF vocabulary: which one begins, ends and pads, and what is added.

llama.cpp stops at `eos`, `eot` and `eom`, and at tokens that it knows by their texts. transformers
stops at what generation_config.json lists. Both are brought together here; what cannot be said in
a GGUF file becomes a note.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mudpuppy.errors import ModelError, shown
from mudpuppy.export.gguf.tokenizer_source import Source
from mudpuppy.export.gguf.vocabulary_codes import NO_END

ROLES = ("bos", "eos", "unk", "sep", "pad", "mask")
"""Tokens that transformers names and a GGUF file has a key for."""
_STOPS = """<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn>
    <|endoftext|> </s> <|eom_id|> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos>
    <turn|> <|tool_response> <｜end▁of▁sentence｜> [e~["""
STOPS_BY_TEXT = frozenset(_STOPS.split())
"""Texts of tokens that end an answer in llama.cpp whatever a file says (src/llama-vocab.cpp)."""


@dataclass(frozen=True)
class SpecialTokens:
    """What a GGUF file says of special tokens."""

    ids: Mapping[str, int] = field(default_factory=dict)
    """Ids by role: `bos`, `eos`, `unk`, `sep`, `pad`, `mask`, `eot`, `eom`."""
    add_bos: bool = False
    """Whether every text begins with the first."""
    add_eos: bool = False
    """Whether every text ends with the last."""
    notes: tuple[str, ...] = ()
    """What cannot be said."""


def read_special_tokens(source: Source, texts: Mapping[int, str], num_rows: int) -> SpecialTokens:
    """Return the special tokens of a tokenizer and its model.

    Args:
        source: the tokenizer.
        texts: every token by its id.
        num_rows: rows of the embedding; ids beyond are nobody's.

    Raises:
        ModelError: no token ends an answer.
    """
    ids = _named_ids(source, num_rows)
    notes: list[str] = []
    begin, end = _frame(source)
    add_bos, add_eos = bool(begin), bool(end)
    if len(begin) > 1 or len(end) > 1:
        said = " ".join(texts.get(number, str(number)) for number in (*begin, *end))
        notes.append(
            f"the tokenizer puts {said} around every text; llama.cpp adds one token at most, so "
            "none is added there"
        )
        add_bos = add_eos = False
    elif begin and ids.get("bos") != begin[0]:
        notes.append(f"every text begins with {texts[begin[0]]!r}, so that is written as bos")
        ids["bos"] = begin[0]
    if len(end) == 1 and ids.get("eos") != end[0]:
        notes.append(
            f"the tokenizer ends every text with {texts[end[0]]!r}, which is not its eos; "
            "llama.cpp can add eos alone, so nothing is added there"
        )
        add_eos = False
    stops = _stops(source, num_rows)
    notes += _beyond(source, num_rows)
    _require_end(source, ids, stops)
    further, more = _further_stops(ids["eos"], stops, texts)
    return SpecialTokens(
        ids={**ids, **further}, add_bos=add_bos, add_eos=add_eos, notes=(*notes, *more)
    )


def _named_ids(source: Source, num_rows: int) -> dict[str, int]:
    """Return the ids by role: the tokenizer's, and config.json's where it has none."""
    found: dict[str, int] = {}
    byte_level = not source.document["model"].get("byte_fallback")
    for role in ROLES:
        number = getattr(source.tokenizer, f"{role}_token_id", None)
        if role == "unk" and byte_level and not source.settings.get("unk_token"):
            number = None  # bytes are never unknown; some classes of transformers name one anyway
        if number is None:
            number = source.model_setting(f"{role}_token_id")
        if type(number) is int and 0 <= number < num_rows:
            found[role] = number
    return found


def _frame(source: Source) -> tuple[list[int], list[int]]:
    """Return what the tokenizer puts before and after every text."""
    plain, framed = source.encode("a", add_special=False), source.encode("a")
    for start in range(len(framed) - len(plain) + 1):
        if framed[start : start + len(plain)] == plain:
            return framed[:start], framed[start + len(plain) :]
    return [], []


def _stops(source: Source, num_rows: int) -> list[int]:
    """Return where transformers ends an answer: by generation_config.json, else by config.json."""
    said = source.generation.get("eos_token_id")
    if said is None:
        said = source.model_setting("eos_token_id")
    listed = said if isinstance(said, list) else [said]
    return [one for one in listed if type(one) is int and 0 <= one < num_rows]


def _beyond(source: Source, num_rows: int) -> list[str]:
    """Return what is said of ends of answers that are no tokens."""
    notes = []
    for name, said in (
        ("generation_config.json", source.generation.get("eos_token_id")),
        ("config.json", source.model_setting("eos_token_id")),
    ):
        listed = said if isinstance(said, list) else [said]
        wrong = [i for i in listed if i is not None and not _is_token(i, num_rows)]
        if wrong:
            notes.append(f"{name}: eos_token_id {shown(wrong[0])} is no token, and left out")
    return notes


def _is_token(number: Any, num_rows: int) -> bool:
    return type(number) is int and 0 <= number < num_rows


def _require_end(source: Source, ids: dict[str, int], stops: Sequence[int]) -> None:
    """Find an end of text, in `ids` or among the stops.

    Raises:
        ModelError: there is none.
    """
    if "eos" not in ids and stops:
        ids["eos"] = stops[0]
    if "eos" not in ids:
        raise ModelError(
            f"{NO_END}: {source.folder}: neither the tokenizer nor the model names a token that "
            "ends an answer; llama.cpp would stop at token 11 or 2, whatever that is",
            hint="name eos_token in tokenizer_config.json",
        )


def _further_stops(
    eos: int, stops: Sequence[int], texts: Mapping[int, str]
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return ids for the stops that llama.cpp would not find, and what to say of the rest."""
    known = {number for number, text in texts.items() if text in STOPS_BY_TEXT}
    lacking = [number for number in dict.fromkeys(stops) if number != eos and number not in known]
    ids = dict(zip(("eot", "eom"), lacking, strict=False))
    notes = []
    if len(lacking) > 2:
        said = ", ".join(repr(texts.get(number, number)) for number in lacking[2:])
        notes.append(f"a GGUF file has no place for more ends of answers: {said} will not stop one")
    unasked = sorted(texts[number] for number in known - set(stops) - {eos})
    if stops and unasked:
        notes.append(
            f"llama.cpp also ends answers at {', '.join(unasked)}, which it knows by their names"
        )
    return ids, tuple(notes)


def read_templates(
    source: Source, special: SpecialTokens, texts: Mapping[int, str]
) -> Mapping[str, str]:
    """Return the chat templates by name, `default` first; nothing where there is none.

    llama.cpp fills `bos_token` and `eos_token` by the ids of the file, and by arbitrary tokens
    where there are none. A template is told of them where the tokenizer has others.
    """
    found: Any = source.tokenizer.chat_template
    if not found:
        return {}
    named = dict(found) if isinstance(found, Mapping) else {"default": str(found)}
    for role in ("bos", "eos"):
        wanted = getattr(source.tokenizer, f"{role}_token") or ""
        written = texts[special.ids[role]] if role in special.ids else None
        if str(wanted) != written:
            said = f"{{%- set {role}_token = {json.dumps(str(wanted), ensure_ascii=False)} %}}\n"
            for name, text in named.items():
                named[name] = said + text if f"{role}_token" in text else text
    return dict(sorted(named.items(), key=lambda pair: pair[0] != "default"))
