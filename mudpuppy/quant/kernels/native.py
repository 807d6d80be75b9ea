"""The compiled C kernel as torch sees it: rows of a packed matrix into a given buffer."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from mudpuppy.quant.formats.interface import Format, Packed
from mudpuppy.quant.kernels.common import FLOATS, Range, is_e8m0, rows_are_dense
from mudpuppy.quant.kernels.trial import KINDS, Task, grain, open_library

_NUMBERS = {
    torch.float32: KINDS["float32"],
    torch.float16: KINDS["float16"],
    torch.bfloat16: KINDS["bfloat16"],
    torch.uint8: KINDS["uint8"],
}


class NativeKernel:
    """The library of dequantize.c, on the threads that torch has.

    Args:
        library: the compiled file.

    Raises:
        OSError: it cannot be loaded.
    """

    def __init__(self, library: Path) -> None:
        self._library = open_library(str(library))
        # torch's own OpenMP runtime: a second one would spin against it
        threads = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
        self._parallel = ctypes.cast(threads, ctypes.c_void_p) if threads else None

    @property
    def is_threaded(self) -> bool:
        """Whether torch's thread pool was found; without it the work is done on one thread."""
        return self._parallel is not None

    def takes(self, form: Format, packed: Packed, out: Tensor) -> bool:
        """Return whether these tensors are such as the library can read and write."""
        tensors = (packed.qweight, packed.scales, out)
        return (
            # a subclass may stand for memory elsewhere: a fake one, one in shards
            all(type(one) is Tensor and one.device.type == "cpu" for one in tensors)
            and all(map(rows_are_dense, tensors))
            and packed.qweight.dtype == torch.uint8
            and out.dtype in FLOATS
            and is_e8m0(form, packed.scales.dtype) is not None
        )

    def dequantise_into(
        self, form: Format, packed: Packed, out: Tensor, rows: Range, columns: Range
    ) -> None:
        """Write `packed[rows, columns]` to `out`; arguments as in `Format.dequantise_into`."""
        qweight, scales, _, block = packed
        height, width = rows[1] - rows[0], columns[1] - columns[0]
        item_bytes = out.element_size()
        share = grain(width, item_bytes)
        task = Task(
            qweight.data_ptr() + rows[0] * qweight.stride(0) + columns[0] // 2,
            scales.data_ptr()
            + (rows[0] * scales.stride(0) + columns[0] // block) * scales.element_size(),
            out.data_ptr(),
            ctypes.addressof(_table(form.levels)),
            qweight.stride(0),
            scales.stride(0),
            out.stride(0),
            height,
            width,
            block,
            _NUMBERS[scales.dtype],
            _NUMBERS[out.dtype],
            share,
            0,
        )
        threads = torch.get_num_threads()
        self._library.mudpuppy_dequantize(ctypes.addressof(task), self._parallel, threads)


@lru_cache(maxsize=64)
def _table(levels: tuple[float, ...]) -> ctypes.Array[ctypes.c_float]:
    return (ctypes.c_float * 16)(*levels)
