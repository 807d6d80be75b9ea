"""What llama.cpp needs of a sentencepiece BPE: one score a token, and where blanks are put.

sentencepiece joins the two neighbours whose union has the best score. tokenizer.json says the same
as a list of pairs; where that list came from scores, they are found again here, and where it did
not, llama.cpp could not read text as the tokenizer does, and the export is refused.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mudpuppy.errors import ModelError, printable
from mudpuppy.export.gguf.added_tokens import BLANK, BYTE_TOKEN, TokenKinds
from mudpuppy.export.gguf.pretokenizers import merge_pairs
from mudpuppy.export.gguf.tokenizer_checks import FROM_BASE
from mudpuppy.export.gguf.tokenizer_source import TOKENIZER_MODEL, Source
from mudpuppy.export.gguf.vocabulary_codes import (
    DAMAGED,
    OTHER_MERGES,
    UNKNOWN_CUTS,
    UNKNOWN_KIND,
)
from mudpuppy.sentencepiece_file import BYTE, NORMAL, UNUSED, BadModel, read_pieces

ADDED_SCORE = -1000.0
"""What llama.cpp's converter gives added tokens."""
PADDING_SCORE = -10000.0
"""What it gives rows that no token has."""
DOUBLED = (
    "text that begins with a blank is read as it is here; llama.cpp puts a further blank before it"
)
ONWARDS = "--pre-tokenizer default exports it nonetheless; compare ids before you trust the file"
"""What to type where the way of reading is not quite llama.cpp's."""


@dataclass(frozen=True)
class Blanks:
    """How blanks are written before the pieces are looked for."""

    scheme: str
    """Which texts get a blank put before them: `always` every one between special tokens, `first`
    the first one, `never` none."""
    splits: bool
    """Whether pieces end at blanks."""
    doubles: bool = True
    """Whether a text that begins with a blank gets one more put before it."""


def read_blanks(document: Mapping[str, Any]) -> Blanks | None:
    """Return how a tokenizer writes blanks; None where it does in no way of sentencepiece's."""
    steps = _steps(document.get("normalizer"), "normalizers")
    cuts = _steps(document.get("pre_tokenizer"), "pretokenizers")
    if not steps and len(cuts) == 1 and cuts[0].get("type") == "Metaspace":
        scheme = str(cuts[0].get("prepend_scheme", "always")).lower()
        if cuts[0].get("replacement") == BLANK and scheme in ("always", "first", "never"):
            return Blanks(scheme, bool(cuts[0].get("split", True)), doubles=False)
        return None
    if cuts and not (len(cuts) == 1 and _is_idle(cuts[0])):
        return None
    prepends = [step for step in steps if step.get("type") == "Prepend"]
    replaces = [step for step in steps if _replaces_blanks(step)]
    if len(replaces) != 1 or len(prepends) + 1 != len(steps) or len(prepends) > 1:
        return None
    if prepends and prepends[0].get("prepend") != BLANK:
        return None
    return Blanks("always" if prepends else "never", splits=False)


def _steps(part: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    if part is None:
        return []
    if part.get("type") == "Sequence":
        return [step for one in part.get(key) or () for step in _steps(one, key)]
    return [part]


def _replaces_blanks(step: Mapping[str, Any]) -> bool:
    pattern = step.get("pattern") or {}
    return (
        step.get("type") == "Replace"
        and pattern.get("String") == " "
        and step.get("content") == BLANK
    )


def _is_idle(cut: Mapping[str, Any]) -> bool:
    """Return whether a stage splits at blanks, of which none are left (as Gemma's does)."""
    return cut.get("type") == "Split" and (cut.get("pattern") or {}).get("String") == " "


def check_bytes(source: Source) -> None:
    """Look whether every byte has a token, or is one: Gemma's tab is written as itself.

    Raises:
        ModelError: one has none; llama.cpp fails at the first character that needs it.
    """
    vocabulary = source.document["model"]["vocab"]
    lacking = [
        f"<0x{byte:02X}>"
        for byte in range(256)
        if f"<0x{byte:02X}>" not in vocabulary and not (byte < 128 and chr(byte) in vocabulary)
    ]
    if lacking:
        raise ModelError(
            f"{UNKNOWN_KIND}: {source.folder}: {len(lacking)} of the 256 tokens for bytes are "
            f"missing, such as {lacking[0]}; llama.cpp fails at the first character without one",
            hint="train the tokenizer with byte_fallback",
        )


@dataclass(frozen=True)
class Scored:
    """What a sentencepiece vocabulary has beside its tokens."""

    scores: tuple[float, ...]
    """A score a row."""
    prefix: bool
    """Whether llama.cpp puts a blank before text."""
    notes: tuple[str, ...] = ()
    """What llama.cpp does otherwise."""


def score_tokens(
    source: Source, kinds: TokenKinds, templates: Mapping[str, str], *, insists: bool = False
) -> Scored:
    """Return the score of every row, and whether text begins with a blank.

    Args:
        source: the tokenizer.
        kinds: its rows.
        templates: its chat templates.
        insists: whether what llama.cpp would do otherwise is noted, and not refused.

    Raises:
        ModelError: bytes are missing, or llama.cpp would read text otherwise.
    """
    check_bytes(source)
    model, every = source.document["model"], source.document.get("added_tokens") or ()
    notes = _uncovered(model, kinds.added)
    blanks = read_blanks(source.document)
    objections = [
        _object_to_blanks(source, blanks),
        _object_to_merges(model, frozenset(t["content"] for t in every)),
        _object_to_crossing(model, blanks, kinds.added),
    ]
    for objection in filter(None, objections):
        if not insists:
            raise objection
        notes.append(objection.message.partition(": ")[2])
    made = _scores_of_merges(model)
    stored, said = _stored_scores(source, made, kinds.added)
    prefix, why = _prefix(blanks or Blanks("always", splits=False), kinds, templates)
    return Scored(
        scores=tuple(
            _score(kind, made.get(text), stored.get(number), number + len(model["merges"]))
            for number, (text, kind) in enumerate(zip(kinds.texts, kinds.kinds, strict=True))
        ),
        prefix=prefix,
        notes=(*notes, *said, *why),
    )


def _score(kind: int, made: float | None, stored: float | None, worst: int) -> float:
    """Return the score of a row; single characters, which nothing makes, come after all others."""
    if kind == UNUSED:
        return PADDING_SCORE
    if kind == BYTE:
        return 0.0
    if kind != NORMAL:
        return ADDED_SCORE
    if stored is not None:
        return stored
    return -float(worst) if made is None else made


def _scores_of_merges(model: Mapping[str, Any]) -> dict[str, float]:
    """Return a score for every token that merges make: the sooner, the better."""
    scores: dict[str, float] = {}
    for rank, (left, right) in enumerate(merge_pairs(model)):
        scores.setdefault(left + right, -float(rank))
    return scores


def _stored_scores(
    source: Source, made: Mapping[str, float], added: frozenset[str]
) -> tuple[dict[int, float], tuple[str, ...]]:
    """Return the scores of tokenizer.model by id where it is this tokenizer's, else a note.

    Raises:
        ModelError: it cannot be read.
    """
    path = source.folder / TOKENIZER_MODEL
    if not path.is_file():
        return {}, ()
    try:
        pieces = list(read_pieces(path))
    except OSError as error:
        raise ModelError(f"{DAMAGED}: {path}: {error.strerror}", hint=FROM_BASE) from error
    except BadModel as error:
        raise ModelError(f"{DAMAGED}: {path}: {error}", hint=FROM_BASE) from error
    vocabulary = source.document["model"]["vocab"]
    normal = {n: piece for n, piece in enumerate(pieces) if piece.kind == NORMAL}
    fits = all(vocabulary.get(piece.text) == number for number, piece in normal.items())
    # the better the score, the sooner the merge: both files must say the same order
    ranked = sorted((-made[p.text], -p.score) for p in normal.values() if p.text in made)
    if not fits or any(a[1] > b[1] for a, b in itertools.pairwise(ranked)):
        return {}, (f"{TOKENIZER_MODEL} is not the tokenizer that transformers loads: left aside",)
    if made.keys() - {piece.text for piece in normal.values()} - added:
        return {}, ()  # scores of two kinds would not compare
    return {number: piece.score for number, piece in normal.items()}, ()


def _prefix(
    blanks: Blanks, kinds: TokenKinds, templates: Mapping[str, str]
) -> tuple[bool, tuple[str, ...]]:
    """Return whether text begins with a blank in llama.cpp, and what is to be said of it.

    llama.cpp puts it before the text after every special token, or before none. A tokenizer that
    puts it before the first text alone is met by neither: chats, which begin with a special token,
    are read as in training without one, and plain text with it.
    """
    doubled = () if blanks.doubles else (DOUBLED,)
    if blanks.scheme != "first":
        return blanks.scheme == "always", doubled if blanks.scheme == "always" else ()
    chats = any(
        "bos_token" in text or any(token in text for token in kinds.added)
        for text in templates.values()
    )
    if chats:
        return False, (
            "a blank is put before the first text alone here; llama.cpp puts it before all text "
            "or none, so none is put: chats are read as in training, plain prompts begin otherwise",
        )
    return True, (
        "a blank is put before the first text alone here; llama.cpp puts it after every special "
        "token, too",
        *doubled,
    )


def _object_to_blanks(source: Source, blanks: Blanks | None) -> ModelError | None:
    """Return the refusal of a tokenizer that writes blanks in no way of sentencepiece's."""
    if blanks is not None:
        return None
    said = {key: source.document.get(key) for key in ("normalizer", "pre_tokenizer")}
    return ModelError(
        f"{UNKNOWN_CUTS}: {source.folder}: the tokenizer falls back to bytes as sentencepiece "
        "does, and changes or cuts text in a way that llama.cpp's does not know: "
        + printable(json.dumps(said, ensure_ascii=False))[:400],
        hint=ONWARDS,
    )


def _object_to_crossing(
    model: Mapping[str, Any], blanks: Blanks | None, added: frozenset[str]
) -> ModelError | None:
    """Return the refusal of tokens that hold a blank inside, where text is cut at blanks."""
    if blanks is None or not blanks.splits:
        return None
    crossing = [token for token in model["vocab"] if BLANK in token[1:] and token not in added]
    if not crossing:
        return None
    return ModelError(
        f"{UNKNOWN_CUTS}: text is cut at every blank here, and llama.cpp cuts nowhere: "
        f"{len(crossing):,} tokens would be read across blanks, such as {crossing[0]!r}",
        hint=ONWARDS,
    )


def _object_to_merges(model: Mapping[str, Any], added: frozenset[str]) -> ModelError | None:
    """Return the refusal of merges whose order no scores give.

    So it is where a pair that would join is not in the list, or where the merges of one token do
    not follow each other.
    """
    vocabulary, pairs = model["vocab"], merge_pairs(model)
    last, done = "", set()
    for left, right in pairs:
        token = left + right
        if token != last and token in done and token not in added:
            return _other_merges(f"the merges that make {token!r} do not follow each other")
        done.add(token)
        last = token
    listed = set(pairs)
    cuts = _list_cuts(vocabulary)
    lacking = [
        pair
        for token in vocabulary
        if token not in added and not BYTE_TOKEN.fullmatch(token)
        for pair in ((token[:at], token[at:]) for at in cuts[len(token)])
        if all(piece in vocabulary for piece in pair) and pair not in listed
    ]
    if not lacking:
        return None
    return _other_merges(
        f"llama.cpp would join {len(lacking):,} pairs that this tokenizer leaves apart, such as "
        f"{lacking[0][0]!r} and {lacking[0][1]!r}"
    )


def _list_cuts(vocabulary: Mapping[str, Any]) -> dict[int, tuple[int, ...]]:
    """Return where a token of some length can be cut so that both parts are as long as a token.

    To try every place of a token takes time with the square of its length, and a stranger's file
    may hold one of megabytes.
    """
    lengths = dict.fromkeys(sorted(map(len, vocabulary)))
    return {
        whole: tuple(at for at in lengths if 0 < at < whole and whole - at in lengths)
        for whole in lengths
    }


def _uncovered(model: Mapping[str, Any], added: frozenset[str]) -> list[str]:
    """Return what is said of tokens with characters that are none by themselves."""
    vocabulary = model["vocab"]
    letters = {letter for token in vocabulary if token not in added for letter in token}
    lone = letters - vocabulary.keys()
    odd = [
        token
        for token in vocabulary
        if token not in added and not BYTE_TOKEN.fullmatch(token) and not lone.isdisjoint(token)
    ]
    if not odd:
        return []
    return [
        f"{len(odd):,} tokens such as {odd[0]!r} hold characters that are no tokens: llama.cpp "
        "puts them together, and this tokenizer never does"
    ]


def _other_merges(what: str) -> ModelError:
    return ModelError(
        f"{OTHER_MERGES}: the merges are not those of sentencepiece, and llama.cpp reads such a "
        f"vocabulary by one score a token: {what}",
        hint=ONWARDS,
    )
