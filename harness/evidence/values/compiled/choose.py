"""What does the pass over all values: compiled C that was tested here, or numpy, and why.

numpy is complete, and it is the definition. Compiled C reads several times as fast; it is made by
the compiler that is there, once for a kind of processor, when so much is to be read that it pays.
MUDPUPPY_KERNELS=0 in the environment leaves numpy alone.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from harness.evidence.values import arrays, bits, rowsums
from harness.evidence.values.compiled.kernel import ScanKernel
from harness.evidence.values.compiled.selftest import judge_library
from mudpuppy.errors import OutputError
from mudpuppy.native.builds import VARIABLE, Source, find_build, get_build
from mudpuppy.native.compiler import KernelUnavailable, find_compiler

COMPILE_BYTES = 1 << 31
"""From so many on the second that compiling takes is won back at once."""
FLAGS = ("-std=c11", "-O3", "-fPIC", "-shared", "-fno-strict-aliasing", "-ffp-contract=fast")
SOURCE = Path(__file__).with_name("scan.c")


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What reads."""

    kernel: ScanKernel | None
    """Compiled C; None is numpy."""
    why: str
    """Why it is that."""


_known: dict[bool, Chosen] = {}
"""What was decided, by whether it might be compiled then."""
_lock = threading.Lock()


def choose(total_bytes: int) -> Chosen:
    """Return what is to read so many bytes; compiles where that pays."""
    if os.environ.get(VARIABLE) == "0":
        return _numpy(f"{VARIABLE}=0")
    compiles = total_bytes >= COMPILE_BYTES
    with _lock:
        held = _known.get(True) or _known.get(False)
        if held is None or (compiles and True not in _known and held.kernel is None):
            held = _known[compiles] = _decide(compiles=compiles)
        return held


def forget() -> None:
    """Forget what was chosen, so that the next use decides anew."""
    _known.clear()


def get_source() -> Source:
    """Return the C source, and what its builds depend on: numpy's path is the definition."""
    here = sorted(Path(__file__).parent.glob("*.py"))
    numpys = [Path(str(module.__file__)) for module in (arrays, bits, rowsums)]
    return Source(path=SOURCE, tests=(*here, *numpys), flags=FLAGS)


def _decide(*, compiles: bool) -> Chosen:
    try:
        compiler = find_compiler()
        source = get_source()
        if compiles:
            build = get_build(source, compiler, judge_library)
        else:
            found = find_build(source, compiler)
            if found is None:
                return _numpy("nothing is compiled yet, and to compile would take longer")
            build = found
        if not build.verdict.passed:
            return _numpy(f"compiled C was refused: {build.verdict.why} ({build.folder})")
        kernel = ScanKernel(build.library)
    except (KernelUnavailable, OutputError) as error:
        return _numpy(str(error))
    except OSError as error:
        return _numpy(f"compiled C cannot be loaded: {error}")
    return Chosen(kernel=kernel, why=f"{build.verdict.why}; {compiler.version}")


def _numpy(why: str) -> Chosen:
    return Chosen(kernel=None, why=why)
