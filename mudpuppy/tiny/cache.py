"""Keep tiny models between runs: one folder per content hash, complete or not there at all.

Every command asks here what its model is called, so what makes tiny models is imported when one is
asked for.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mudpuppy.tiny.names import check_family, is_tiny_name

if TYPE_CHECKING:
    from mudpuppy.tiny.training import Progress

MAKING = "making the embedded model (once, about a minute)"
"""What is said before it is built."""


def cache_folder(family: str | None = None, *, seed: int = 0) -> Path:
    """Return where the trained model, or the random one of `family`, belongs; builds nothing."""
    from mudpuppy.cache import cache_root
    from mudpuppy.tiny.fingerprint import family_hash, recipe_hash
    from mudpuppy.tiny.training import Recipe

    if family is None:
        return cache_root() / f"tiny-{recipe_hash(Recipe(), seed)}"
    return cache_root() / f"tiny-{family}-{family_hash(family, seed)}"


def tiny_path(*, seed: int = 0, progress: Progress | None = None, force: bool = False) -> Path:
    """Return the folder of the trained tiny model; the first call builds it.

    Raises:
        OutputError: the cache folder cannot be written.
        EngineError: the model was trained and is not fit for use.
    """

    def build(folder: Path) -> object:
        from mudpuppy.tiny.build import build_tiny

        if progress is None:  # nobody else says why nothing happens for a minute
            print(MAKING, file=sys.stderr, flush=True)
        return build_tiny(folder, seed=seed, progress=progress)

    return fill(cache_folder(seed=seed), build, force=force)


def family_path(family: str, *, seed: int = 0, force: bool = False) -> Path:
    """Return the folder of the random model of `family`; the first call builds it."""

    def build(folder: Path) -> object:
        from mudpuppy.tiny.families import build_family

        return build_family(family, folder, seed=seed)

    return fill(cache_folder(family, seed=seed), build, force=force)


def is_complete(folder: Path) -> bool:
    """Return whether `folder` holds every file of its manifest, unchanged."""
    from mudpuppy.tiny.build import MANIFEST
    from mudpuppy.tiny.fingerprint import file_sha256

    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        sums = files.items()
        return bool(files) and all(file_sha256(folder / name) == known for name, known in sums)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # whatever is wrong with it, it is to be built again


def resolve_model(name: str) -> str:
    """Return the folder of the embedded model `name`, or any other name unchanged.

    Raises:
        ModelError: the family is not known.
    """
    if not is_tiny_name(name):
        return name
    family = name.partition(":")[2]
    if name == "tiny":
        return str(tiny_path())
    check_family(family)
    return str(family_path(family))


def fill(target: Path, build: Callable[[Path], object], *, force: bool = False) -> Path:
    """Return `target`, built as `mudpuppy.cache.fill` does; it is complete with its manifest."""
    from mudpuppy import cache

    return cache.fill(target, build, is_complete, force=force)
