"""Find what can quantise as llama.cpp does: a library with ggml's functions, or `llama-quantize`.

Nothing is imported or loaded here. In this order: the package xllamacpp, whose one extension module
holds all of llama.cpp and exports its functions; llama-cpp-python, which brings its libraries as
files; `llama-quantize` on PATH. Where the person names a place, that alone is looked at.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mudpuppy.errors import UsageError

LIBRARIES = tuple(
    f"{stem}{suffix}"
    for stem in ("libggml-base", "ggml-base", "libggml", "ggml", "libllama")
    for suffix in (".so", ".dylib", ".dll")
)
"""Files that may hold ggml's quantiser, the likeliest first; old builds have it in `libllama`."""
BINARIES = ("llama-quantize", "llama-quantize.exe")
"""The program that quantises whole files."""
BUILT_IN = (
    ".",
    "bin",
    "lib",
    "lib64",
    "build",
    "build/bin",
    "build/lib",
    "build/src",
    "build/ggml/src",
)
"""Folders of a checkout or an installation that builds put them in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What may be able to quantise."""

    name: str
    """What it is, with its version where one is known."""
    path: Path
    """The library, or the program."""
    is_library: bool
    """Whether it is a library, which takes rows, and no program, which takes whole files."""


def find_candidates(llama_cpp: Path | None) -> list[Candidate]:
    """Return what there is, the best first.

    Args:
        llama_cpp: a llama.cpp checkout, build or installation, a library, or the program itself;
            None to look at what is installed.

    Raises:
        UsageError: there is no such place, or nothing of the kind in it.
    """
    if llama_cpp is None:
        return [*_packaged("xllamacpp"), *_packaged("llama_cpp"), *_on_path()]
    if not llama_cpp.exists():
        raise UsageError(
            f"--llama-cpp-path {llama_cpp}: there is no such file or folder",
            hint="leave it out for what is installed: pip install 'mudpuppy[serve]'",
        )
    if found := list(_in_place(llama_cpp)):
        return found
    raise UsageError(
        f"--llama-cpp-path {llama_cpp}: no {LIBRARIES[0]} and no {BINARIES[0]} in it",
        hint="build it: cmake -B build && cmake --build build --target llama-quantize",
    )


def _in_place(place: Path) -> Iterator[Candidate]:
    if place.is_file():
        is_library = place.name not in BINARIES
        yield Candidate(name=place.name, path=place.resolve(), is_library=is_library)
        return
    for names, is_library in ((LIBRARIES, True), (BINARIES, False)):
        for folder in BUILT_IN:
            for name in names:
                path = place / folder / name
                if path.is_file():
                    yield Candidate(name=name, path=path.resolve(), is_library=is_library)


def _packaged(package: str) -> Iterator[Candidate]:
    """Yield the libraries of an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    for folder in map(Path, folders or ()):
        modules = sorted(folder.glob(f"{package}*.so")) + sorted(folder.glob(f"{package}*.pyd"))
        files = [folder / "lib" / name for name in LIBRARIES]
        for path in (*modules, *(file for file in files if file.is_file())):
            yield Candidate(name=_named(package), path=path, is_library=True)


def _named(package: str) -> str:
    distribution = {"llama_cpp": "llama-cpp-python"}.get(package, package)
    try:
        return f"{distribution} {version(distribution)}"
    except PackageNotFoundError:
        return distribution


def _on_path() -> Iterator[Candidate]:
    found = shutil.which(BINARIES[0], path=os.environ.get("PATH"))
    if found:
        yield Candidate(name=BINARIES[0], path=Path(found), is_library=False)
