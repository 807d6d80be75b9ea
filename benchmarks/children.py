"""Measurements in fresh processes: cold starts, whole commands, and peaks of memory."""

from __future__ import annotations

import ctypes
import functools
import gc
import importlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.frame import Figures, timed

ROOT = Path(__file__).resolve().parents[1]


def environment(threads: int, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a child: this tree first, and a fixed number of threads."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    fixed = {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return {**os.environ, **fixed, **(more or {})}


def call(
    function: str, *arguments: Any, threads: int = 1, is_whole: bool = False, prepare: str = ""
) -> Figures:
    """Run a function in a fresh process and return its figures.

    Args:
        function: as `module:name`.
        arguments: given to it, as JSON carries them.
        threads: of the arithmetic.
        is_whole: whether the whole process is timed, from outside, and not the function alone.
        prepare: a function of the same module that is called first, such as one that imports what
            is heavy; it is no part of the peak, nor of the time of the function alone.

    Returns:
        What it returned, `wall_s` and `cpu_s`, and `peak_mb`, by which the resident memory grew.

    Raises:
        RuntimeError: the process failed.
    """
    words = [sys.executable, "-m", "benchmarks.children", function, json.dumps(arguments), prepare]
    ended = command(words, threads=threads)
    inside: Figures = json.loads(ended.output.splitlines()[-1])
    return {**inside, **ended.timed} if is_whole else inside


class Ended:
    """A command that came to its end."""

    def __init__(self, timed: Figures, output: str, code: int) -> None:
        self.timed = timed
        self.output = output
        self.code = code


def command(
    words: Sequence[str],
    *,
    threads: int = 1,
    codes: Sequence[int] = (0,),
    more: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Ended:
    """Run a command, in `folder` if given, and return `wall_s`, `cpu_s` and what it printed.

    Raises:
        RuntimeError: it ended with another exit code than one of `codes`.
    """
    wall, cpu = time.perf_counter(), _children_s()
    done = subprocess.run(
        list(words),
        capture_output=True,
        text=True,
        env=environment(threads, more),
        cwd=folder,
        check=False,
    )
    timed = {"wall_s": time.perf_counter() - wall, "cpu_s": _children_s() - cpu}
    if done.returncode not in codes:
        raise RuntimeError(f"{' '.join(words)}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    return Ended(timed, done.stdout, done.returncode)


def _children_s() -> float:
    """Return the processor time of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def peak_growth(work: Callable[[], object]) -> int:
    """Return by how many bytes the resident memory grew at its highest during `work` (Linux)."""
    gc.collect()
    forget_peak()
    before = resident_bytes()
    work()
    return max(0, peak_bytes() - before)


def forget_peak() -> None:
    """Start the high-water mark of this process anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """Return the highest resident memory of this process since it began, or was forgotten."""
    return _status("VmHWM")


def code_bytes() -> int:
    """Return the resident memory of this process that is code of programs and libraries (Linux).

    It grows whenever something is used for the first time, and belongs to the system's cache. A
    model's own file that is mapped counts as memory of the model, not as code.
    """
    total, is_code = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):  # the head of a mapping, with its file at the end
            is_code = ".so" in rest[-1] or rest[-1] == sys.executable or "/bin/python" in rest[-1]
        elif is_code and first == "Rss:":
            total += int(rest[0]) * 1024
    return total


def release_memory() -> None:
    """Give back to the system what was freed; the C library keeps some of it otherwise."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _status(name: str) -> int:
    """Return a line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def _main(function: str, arguments: str, prepare: str) -> None:
    module_name, _, name = function.partition(":")
    module = importlib.import_module(module_name)
    if prepare:
        getattr(module, prepare)()
    figures: Figures = {}
    work = functools.partial(getattr(module, name), *json.loads(arguments))
    peak = peak_growth(lambda: figures.update(timed(work)))
    print(json.dumps({"peak_mb": peak / 1e6, **figures}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
