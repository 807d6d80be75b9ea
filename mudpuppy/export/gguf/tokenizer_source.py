"""The tokenizer of a model folder as it works: its parts as transformers loads them, checked.

transformers does not always take tokenizer.json as it lies there: for some classes it puts its own
pre-tokenizer or blanks in place of the file's. The model was trained on what it loads, so that is
what is exported.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mudpuppy.errors import ModelError, clip, printable
from mudpuppy.export.gguf.tokenizer_class import known_class, load_class
from mudpuppy.export.gguf.vocabulary_codes import DAMAGED, TWICE, UNKNOWN_KIND

LARGEST_BYTES = 200_000_000
"""Largest JSON file that is read; vocabularies of 262,144 tokens take 35 MB."""
FROM_BASE = "copy the tokenizer files of the base model into the folder"
TOKENIZER_JSON, TOKENIZER_MODEL = "tokenizer.json", "tokenizer.model"


@dataclass(frozen=True)
class Source:
    """A tokenizer, loaded, with the settings files beside it."""

    folder: Path
    """Where it lies."""
    tokenizer: Any
    """The tokenizer as transformers loads it."""
    document: Mapping[str, Any]
    """What works in it, in the form of tokenizer.json."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """tokenizer_config.json."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """config.json; of a model with a part for text, that part's entries are reachable, too."""
    generation: Mapping[str, Any] = field(default_factory=dict)
    """generation_config.json."""

    def model_setting(self, key: str) -> Any:
        """Return an entry of config.json, or of its part about text."""
        found = self.config.get(key)
        text = self.config.get("text_config")
        return text.get(key) if found is None and isinstance(text, Mapping) else found

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """Return the ids of a text of any length, without a warning about it."""
        core = self.tokenizer.backend_tokenizer
        return list(core.encode(text, add_special_tokens=add_special).ids)


def read_source(folder: Path) -> Source:
    """Load the tokenizer of a model folder; no code of the folder is run.

    Raises:
        ModelError: there is none, its files are damaged, or it is no BPE.
    """
    if not any((folder / name).is_file() for name in (TOKENIZER_JSON, TOKENIZER_MODEL)):
        others = [name for name in ("vocab.json", "tekken.json") if (folder / name).is_file()]
        raise ModelError(
            f"{DAMAGED}: {folder}: no {TOKENIZER_JSON} and no {TOKENIZER_MODEL}"
            + (f", and {others[0]} alone does not say how text is cut" if others else ""),
            hint="write it with AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)"
            if others
            else FROM_BASE,
        )
    stored = folder / TOKENIZER_JSON
    if stored.is_file():
        _check_document(read_json(stored), stored)
    settings = _read_beside(folder / "tokenizer_config.json")
    config = _read_beside(folder / "config.json")
    tokenizer = _load(folder, known_class(settings, config))
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        raise ModelError(
            f"{UNKNOWN_KIND}: {folder}: the tokenizer ({type(tokenizer).__name__}) is written in "
            "Python, and llama.cpp cannot run it",
            hint="export a model whose tokenizer comes as tokenizer.json",
        )
    document = json.loads(core.to_str())
    _check_document(document, stored)
    return Source(
        folder=folder,
        tokenizer=tokenizer,
        document=document,
        settings=settings,
        config=config,
        generation=_read_beside(folder / "generation_config.json"),
    )


def _load(folder: Path, name: str | None) -> Any:
    """Load the tokenizer; whatever its libraries say becomes an error of the folder."""
    with _blaming(folder):
        if name is not None:
            return load_class(name).from_pretrained(str(folder), local_files_only=True)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )


@contextmanager
def _blaming(folder: Path) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ModelError(
            f"{folder}: the tokenizer needs a package: {clip(str(error))}",
            hint="pip install 'mudpuppy[gguf]'",
        ) from error
    except Exception as error:
        raise ModelError(
            f"{DAMAGED}: {folder}: the tokenizer cannot be loaded: "
            f"{type(error).__name__}: {clip(printable(str(error)))}",
            hint=FROM_BASE,
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file that holds an object.

    Raises:
        ModelError: it cannot be read, is no JSON, or names a key twice.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_BYTES:
            raise ModelError(f"{DAMAGED}: {path}: {size:,} bytes, more than is read")
        found = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except OSError as error:
        raise ModelError(f"{DAMAGED}: {path}: {error.strerror}", hint=FROM_BASE) from error
    except _TwiceError as error:
        raise ModelError(
            f"{TWICE}: {path}: {error.args[0]!r} is there twice in one object", hint=FROM_BASE
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"{DAMAGED}: {path}: no JSON: {clip(str(error))}", hint=FROM_BASE
        ) from error
    if not isinstance(found, dict):
        raise ModelError(f"{DAMAGED}: {path}: an object is expected", hint=FROM_BASE)
    return found


class _TwiceError(ValueError):
    """A key occurs twice in one object."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise _TwiceError(next(key for key, count in counts.items() if count > 1))
    return found


def _read_beside(path: Path) -> dict[str, Any]:
    """Return a settings file, or nothing where there is none."""
    return read_json(path) if path.is_file() else {}


def _check_document(document: Mapping[str, Any], path: Path) -> None:
    """Look whether a tokenizer.json is whole.

    Raises:
        ModelError: a part is missing, has the wrong form, or contradicts another.
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
    vocabulary, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocabulary, Mapping) or not vocabulary:
        raise ModelError(f"{DAMAGED}: {path}: the model has no vocab", hint=FROM_BASE)
    if not isinstance(merges, list) or (not merges and len(vocabulary) > MOST_WITHOUT_MERGES):
        raise ModelError(
            f"{DAMAGED}: {path}: the model has no merges, so that no word would be put together",
            hint=FROM_BASE,
        )
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise ModelError(
            f"{UNKNOWN_KIND}: {path}: pieces inside a word are marked with "
            f"{model.get('continuing_subword_prefix') or model.get('end_of_word_suffix')!r}, which "
            "llama.cpp does not know",
            hint="export a model of the Llama, Mistral, Qwen, Gemma or Phi families",
        )
    added = document.get("added_tokens") or []
    _check_ids(path, vocabulary, added)
    _check_merges(path, vocabulary, merges)
    _check_texts(path, [*vocabulary, *(token["content"] for token in added)])


MOST_WITHOUT_MERGES = 300
"""Tokens of a vocabulary of bytes and special tokens, which needs no merges."""


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
