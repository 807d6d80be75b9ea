"""The C source of the 4-bit layers, and what is known of its build on this machine. No torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from mudpuppy.native.builds import VARIABLE, Source, find_build, get_verdict
from mudpuppy.native.compiler import KernelUnavailable, find_compiler
from mudpuppy.native.verdicts import Verdict

SOURCE = Path(__file__).with_name("dequantize.c")


def get_source() -> Source:
    """Return the C source, and what its builds depend on."""
    return Source(path=SOURCE, tests=tuple(sorted(Path(__file__).parent.glob("*.py"))))


def describe_kernel() -> str:
    """Say what will compute 4-bit layers on this processor; nothing is compiled or loaded."""
    if os.environ.get(VARIABLE) == "0":
        return f"PyTorch ({VARIABLE}=0)"
    try:
        compiler = find_compiler()
        build = find_build(get_source(), compiler)
    except KernelUnavailable as error:
        return f"PyTorch ({error})"
    if build is None:
        return f"C, compiled and tested at first use ({compiler.version})"
    if not build.verdict.passed:
        return f"PyTorch (the compiled kernel was refused: {build.verdict.why}; {build.folder})"
    return f"compiled C ({build.verdict.why}; {compiler.version})"


def get_device_verdict(facts: tuple[str, ...], judge: Callable[[], tuple[bool, str]]) -> Verdict:
    """Return what the self-test of the Triton kernels said on a GPU; the first call runs it.

    Args:
        facts: what the verdict depends on, beside the sources: GPU, torch and triton.
        judge: the self-test.

    Raises:
        KernelUnavailable: the test could not be run.
        OutputError: the cache cannot be written.
    """
    return get_verdict("triton", tuple(get_source().texts()), facts, judge)
