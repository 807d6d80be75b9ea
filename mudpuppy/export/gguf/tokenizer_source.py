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
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mudpuppy.errors import ModelError, clip, printable
from mudpuppy.export.gguf.tokenizer_checks import FROM_BASE, check_kind, check_parts
from mudpuppy.export.gguf.tokenizer_class import known_class, load_class
from mudpuppy.export.gguf.vocabulary_codes import DAMAGED, TWICE, UNKNOWN_KIND
from mudpuppy.sentencepiece_file import BadModel, read_pieces

LARGEST_BYTES = 200_000_000
"""Largest JSON file that is read; vocabularies of 262,144 tokens take 35 MB."""
TOKENIZER_JSON, TOKENIZER_MODEL = "tokenizer.json", "tokenizer.model"
PAIR = ("vocab.json", "merges.txt")
"""What byte-level tokenizers were saved as before tokenizer.json."""


@dataclass(frozen=True)
class Source:
    """A tokenizer, loaded, with the settings files beside it."""

    folder: Path
    """Where it lies."""
    tokenizer: Any
    """The tokenizer as transformers loads it."""
    document: Mapping[str, Any]
    """What works in it, in the form of tokenizer.json."""
    stored: Mapping[str, Any] = field(default_factory=dict)
    """tokenizer.json as it lies there; empty where there is none."""
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
    path, stored = _find(folder), {}
    if path.name == TOKENIZER_JSON:
        stored = read_json(path)
        check_kind(stored, path)
        check_parts(stored, path)
    elif path.name == TOKENIZER_MODEL:
        _check_model_file(path)
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
    check_kind(document, path)
    if path.name != TOKENIZER_JSON:
        check_parts(document, path)
    return Source(
        folder=folder,
        tokenizer=tokenizer,
        document=document,
        stored=stored,
        settings=settings,
        config=config,
        generation=_read_beside(folder / "generation_config.json"),
    )


def _find(folder: Path) -> Path:
    """Return the file that the tokenizer of a folder is read from.

    Raises:
        ModelError: there is none.
    """
    found = [name for name in (TOKENIZER_JSON, TOKENIZER_MODEL) if (folder / name).is_file()]
    if all((folder / name).is_file() for name in PAIR):
        found.append(PAIR[0])
    if found:
        return folder / found[0]
    tekken = (folder / "tekken.json").is_file()
    raise ModelError(
        f"{DAMAGED}: {folder}: no {TOKENIZER_JSON}, no {TOKENIZER_MODEL}, and no {PAIR[0]} with "
        f"{PAIR[1]}" + (", and tekken.json is not read here" if tekken else ""),
        hint="AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER) writes tokenizer.json"
        if tekken
        else FROM_BASE,
    )


def _check_model_file(path: Path) -> None:
    """Look whether a tokenizer.model can be read, and what reads it is installed.

    Raises:
        ModelError: it cannot, or a package is missing.
    """
    try:
        next(read_pieces(path), None)
    except OSError as error:
        raise ModelError(f"{DAMAGED}: {path}: {error.strerror}", hint=FROM_BASE) from error
    except BadModel as error:
        raise ModelError(
            f"{DAMAGED}: {path}: no sentencepiece model: {error}", hint=FROM_BASE
        ) from error
    lacking = [name for name in ("sentencepiece", "google.protobuf") if not _is_there(name)]
    if lacking:
        raise ModelError(
            f"{path}: reading it needs the package {lacking[0].removeprefix('google.')}",
            hint="pip install 'mudpuppy[gguf]'",
        )


def _is_there(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False


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
