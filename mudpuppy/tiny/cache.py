"""Keep tiny models between runs: one folder per content hash, complete or not there at all."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mudpuppy.errors import OutputError
from mudpuppy.files import atomic_folder
from mudpuppy.tiny.build import MANIFEST, build_tiny
from mudpuppy.tiny.fingerprint import family_hash, file_sha256, recipe_hash
from mudpuppy.tiny.names import check_family, is_tiny_name
from mudpuppy.tiny.training import Progress, Recipe


def cache_root() -> Path:
    """Return the cache folder: MUDPUPPY_CACHE, or mudpuppy under the user's cache folder."""
    chosen = os.environ.get("MUDPUPPY_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "mudpuppy"


def cache_folder(family: str | None = None, *, seed: int = 0) -> Path:
    """Return where the trained model, or the random one of `family`, belongs; builds nothing."""
    if family is None:
        return cache_root() / f"tiny-{recipe_hash(Recipe(), seed)}"
    return cache_root() / f"tiny-{family}-{family_hash(family, seed)}"


def tiny_path(*, seed: int = 0, progress: Progress | None = None, force: bool = False) -> Path:
    """Return the folder of the trained tiny model; the first call builds it.

    Raises:
        OutputError: the cache folder cannot be written.
        EngineError: the model was trained and is not fit for use.
    """
    return fill(
        cache_folder(seed=seed),
        lambda folder: build_tiny(folder, seed=seed, progress=progress),
        force=force,
    )


def family_path(family: str, *, seed: int = 0, force: bool = False) -> Path:
    """Return the folder of the random model of `family`; the first call builds it."""

    def build(folder: Path) -> object:
        from mudpuppy.tiny.families import build_family

        return build_family(family, folder, seed=seed)

    return fill(cache_folder(family, seed=seed), build, force=force)


def is_complete(folder: Path) -> bool:
    """Return whether `folder` holds every file of its manifest, unchanged."""
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
    """Return `target`, built beside its place and renamed unless it is already complete.

    A lock lets a second process wait for the first; the kernel drops it with a killed one, and
    what that one left behind is removed here.
    """
    if not force and is_complete(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent / f".{target.name}.lock"):
            if not force and is_complete(target):
                return target
            with atomic_folder(target, replace=True) as folder:
                build(folder)
    except OSError as problem:
        hint = "name a folder that can be written in MUDPUPPY_CACHE"
        raise OutputError(f"{target}: cannot be built: {problem}", hint=hint) from problem
    return target


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
