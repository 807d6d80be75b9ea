"""Builds of C sources in the user's cache, each with the verdict of its self-test. No torch.

The folder is named after everything that the result depends on: source, self-test, compiler, flags
and the processor. A home folder that several machines share thus holds one build for each kind of
them, and none meets instructions that it does not have.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mudpuppy.cache import cache_root, fill
from mudpuppy.native import compiler as compilers
from mudpuppy.native.compiler import FLAGS, Compiler, KernelUnavailable
from mudpuppy.native.verdicts import Verdict, is_complete, make_key, read_verdict, record

VARIABLE = "MUDPUPPY_KERNELS"
"""Environment variable; with `0` nothing that is compiled is used."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A C source, and what its builds depend on besides."""

    path: Path
    """The file."""
    tests: tuple[Path, ...]
    """Files of its self-test: a verdict is of both."""
    flags: tuple[str, ...] = FLAGS
    """What it is compiled with, beside the flag that names the processor."""

    def texts(self) -> list[str]:
        """Return source and self-test, as parts of a key."""
        return [path.read_bytes().hex() for path in (self.path, *self.tests)]


@dataclass(frozen=True, kw_only=True)
class Build:
    """A compiled library and what is known of it."""

    library: Path
    """The shared library."""
    verdict: Verdict
    """What the self-test said."""

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.library.parent


def library_path(source: Source, compiler: Compiler) -> Path:
    """Return where the build of a source by this compiler for this processor belongs."""
    said = (*compiler.command, compiler.version, *source.flags, compilers.processor())
    key = make_key(*source.texts(), *said)
    return cache_root() / "kernels" / f"{source.path.stem}-{key}" / f"{source.path.stem}.so"


def find_build(source: Source, compiler: Compiler) -> Build | None:
    """Return the build that is there already; nothing is compiled.

    Raises:
        KernelUnavailable: it is not safe to load.
    """
    library = library_path(source, compiler)
    return _open(library) if is_complete(library.parent) else None


def get_build(
    source: Source, compiler: Compiler, judge: Callable[[Path], tuple[bool, str]]
) -> Build:
    """Return the build for this machine; the first call compiles it and has it judged.

    Args:
        source: what is compiled.
        compiler: what compiles.
        judge: the self-test of a fresh library: whether it passed, and why or why not. A verdict is
            kept with the build, also a bad one, so that it is not tried again at every start.

    Raises:
        KernelUnavailable: it cannot be compiled, or is not safe to load.
        OutputError: the cache cannot be written.
    """
    library = library_path(source, compiler)

    def build(folder: Path) -> None:
        made = folder / library.name
        flag = compilers.compile_source(compiler, source.path, source.flags, made)
        made.chmod(0o755)  # some umasks let a group write, and _open refuses that
        passed, why = judge(made)
        record(folder, Verdict(passed=passed, why=why, made_by=f"{compiler.version} {flag}"))

    fill(library.parent, build, is_complete)
    return _open(library)


def get_verdict(
    name: str, parts: tuple[str, ...], facts: tuple[str, ...], judge: Callable[[], tuple[bool, str]]
) -> Verdict:
    """Return what a self-test said of kernels that lie in no file; the first call runs it.

    Args:
        name: of the kind of kernels.
        parts: what they and their test are made of.
        facts: what the verdict depends on besides, such as GPU and driver; it tells them.
        judge: the self-test.

    Raises:
        KernelUnavailable: the test could not be run.
        OutputError: the cache cannot be written.
    """

    def build(folder: Path) -> None:
        passed, why = judge()
        record(folder, Verdict(passed=passed, why=why, made_by=", ".join(facts)))

    target = cache_root() / "kernels" / f"{name}-{make_key(*parts, *facts)}"
    return read_verdict(fill(target, build, is_complete))


def _open(library: Path) -> Build:
    """Read the verdict of a complete build, and refuse one that others could have written."""
    for path in (library.parent, library):
        state = path.stat()
        if state.st_uid not in (os.geteuid(), 0) or state.st_mode & 0o022:
            raise KernelUnavailable(f"{path} belongs to others or can be written by them")
    return Build(library=library, verdict=read_verdict(library.parent))
