"""The one place that decides what computes a 4-bit layer: compiled C, Triton or PyTorch alone.

The PyTorch path is complete, and it is the definition; a kernel gives the same weights, bit for
bit, or is not used. On a processor it is C, compiled at first use by the compiler that is there; on
a GPU it is Triton, where it is installed. Both must have passed the self-test on the very device.
`--kernels off`, or MUDPUPPY_KERNELS=0 in the environment, leave PyTorch alone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from mudpuppy.errors import OutputError
from mudpuppy.native.builds import VARIABLE, get_build
from mudpuppy.native.compiler import KernelUnavailable, find_compiler
from mudpuppy.quant.formats.interface import Format, Packed, require_part
from mudpuppy.quant.kernels.common import Kernel, Range
from mudpuppy.quant.kernels.compiler import get_device_verdict, get_source
from mudpuppy.quant.kernels.native import NativeKernel
from mudpuppy.quant.kernels.selftest import find_wrong_rows, judge_device, judge_library
from mudpuppy.quant.kernels.triton_kernel import TritonKernel
from mudpuppy.quant.workspace import Space
from mudpuppy.records import Choice


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What computes on a device, and why."""

    kernel: Kernel | None
    """The kernel; None is the PyTorch path."""
    choice: Choice
    """The same for the run's record."""


_allowed = True
_known = dict[str, Chosen]()
_lock = threading.RLock()


def allow(kernels: bool) -> None:
    """Allow kernels, or leave the PyTorch path alone, in this process from now on."""
    global _allowed
    _allowed = kernels


@contextmanager
def allowing(kernels: bool) -> Iterator[None]:
    """Allow kernels, or leave the PyTorch path alone, inside the block."""
    before = _allowed
    allow(kernels)
    try:
        yield
    finally:
        allow(before)


def choose(device: torch.device) -> Chosen:
    """Return what computes on `device`; the first call there compiles and tests."""
    if not _allowed:
        return _pytorch("--kernels off")
    if os.environ.get(VARIABLE) == "0":
        return _pytorch(f"{VARIABLE}=0")
    known = _known.get(str(device))
    if known is not None:
        return known
    with _lock:
        if str(device) not in _known:
            _known[str(device)] = _decide(device)
        return _known[str(device)]


def forget() -> None:
    """Forget what was chosen, so that the next use decides anew."""
    _known.clear()


def dequantise_into(
    form: Format,
    packed: Packed,
    out: Tensor,
    rows: Range,
    columns: Range,
    space: Space | None = None,
) -> None:
    """Do what `Format.dequantise_into` does, by the kernel of the device where there is one.

    Raises:
        ValueError: as `require_part` says.
    """
    # a graph that is traced takes operations of torch alone; products are one as a whole
    kernel = None if torch.compiler.is_compiling() else choose(out.device).kernel
    if kernel is not None and kernel.takes(form, packed, out):
        require_part(form, packed, out, rows, columns)  # kernels write through bare addresses
        kernel.dequantise_into(form, packed, out, rows, columns)
    else:
        form.dequantise_into(packed, out, rows=rows, columns=columns, space=space)


def dequantise(form: Format, packed: Packed, dtype: torch.dtype) -> Tensor:
    """Do what `Format.dequantise` does, by the kernel of the device where there is one."""
    shape = (packed.qweight.shape[0], packed.in_features)
    dense = torch.empty(shape, dtype=dtype, device=packed.qweight.device)
    dequantise_into(form, packed, dense, (0, shape[0]), (0, shape[1]))
    return dense


def find_fused(form: Format, packed: Packed, x: Tensor) -> TritonKernel | None:
    """Return the kernel whose fused product is to be taken for `x` (tokens, ...), if any."""
    if x.device.type == "cpu":
        return None  # products of the processor's own library are far better than a loop of ours
    kernel = choose(x.device).kernel
    if isinstance(kernel, TritonKernel) and kernel.multiplies(form, packed, x):
        return kernel
    return None


def _decide(device: torch.device) -> Chosen:
    if device.type not in ("cpu", "cuda"):
        return _pytorch(f"there is no kernel for {device.type}")
    try:
        return _native() if device.type == "cpu" else _triton(device)
    except (KernelUnavailable, OutputError) as error:
        return _pytorch(str(error))


def _native() -> Chosen:
    compiler = find_compiler()
    build = get_build(get_source(), compiler, judge_library)
    if not build.verdict.passed:
        return _pytorch(f"the compiled kernel was refused: {build.verdict.why} ({build.folder})")
    try:
        kernel = NativeKernel(build.library)
    except OSError as error:
        return _pytorch(f"the compiled kernel cannot be loaded: {error}")
    _, wrong = find_wrong_rows(kernel, torch.device("cpu"))
    if wrong:
        return _pytorch(f"the compiled kernel was refused: {wrong} ({build.folder})")
    threads = "torch's threads" if kernel.is_threaded else "one thread"
    reason = f"{build.verdict.why}; {compiler.version}; {threads}"
    return Chosen(kernel=kernel, choice=Choice(value="compiled C", reason=reason))


def _triton(device: torch.device) -> Chosen:
    try:
        kernel = TritonKernel()
    except ImportError as error:
        return _pytorch(f"triton cannot be imported: {error}")
    said = get_device_verdict(_describe(device), lambda: judge_device(device))
    if not said.passed:
        return _pytorch(f"the Triton kernels were refused: {said.why}")
    return Chosen(kernel=kernel, choice=Choice(value="Triton", reason=said.why))


def _describe(device: torch.device) -> tuple[str, ...]:
    """Return what the verdict on a GPU depends on, beside our sources."""
    import triton

    facts = torch.cuda.get_device_properties(device)
    arch = getattr(facts, "gcnArchName", f"sm_{facts.major}{facts.minor}")
    return (facts.name, arch, torch.__version__, triton.__version__)


def _pytorch(reason: str) -> Chosen:
    return Chosen(kernel=None, choice=Choice(value="PyTorch", reason=reason))
