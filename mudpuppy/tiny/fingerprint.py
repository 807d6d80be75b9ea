"""Name a tiny model by everything that its weights depend on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from mudpuppy.tiny.training import Recipe

PACKAGES = ("torch", "transformers", "tokenizers")
"""Packages whose version may change the bits."""
# what makes the model; commands and the cache itself may change without a new one
SOURCES = (
    "chat_template.jinja",
    "corpus.py",
    "corpus.yaml",
    "build.py",
    "measure.py",
    "tokenizer.py",
    "training.py",
    "voice.yaml",
)
FAMILY_SOURCES = ("families.py", "image_chat_template.jinja")
"""What the models of other families depend on besides."""


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, as hexadecimal text."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def recipe_hash(recipe: Recipe, seed: int) -> str:
    """Return 16 hexadecimal digits for the trained model of `recipe` and `seed`."""
    return _hash(SOURCES, {"recipe": asdict(recipe), "seed": seed})


def family_hash(family: str, seed: int) -> str:
    """Return 16 hexadecimal digits for the random model of `family` and `seed`."""
    return _hash((*SOURCES, *FAMILY_SOURCES), {"family": family, "seed": seed})


def _hash(sources: tuple[str, ...], settings: dict[str, object]) -> str:
    folder = Path(__file__).parent
    inputs = {
        "settings": settings,
        "versions": {name: version(name) for name in PACKAGES},
        "sources": {name: file_sha256(folder / name) for name in sources},
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
