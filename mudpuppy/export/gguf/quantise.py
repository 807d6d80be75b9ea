"""Quantise rows: the plain types in numpy, all others by llama.cpp's own code, tested before use.

A library is first tried in a process of its own, on rows whose result is known: one that crashes,
hangs or computes something else is passed over, and told.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from mudpuppy.errors import EngineError
from mudpuppy.export.gguf.ggml import Ggml, TypeForm, Unusable
from mudpuppy.export.gguf.libraries import Candidate, find_candidates
from mudpuppy.export.gguf.mix import native_types
from mudpuppy.export.gguf.plainblocks import WRITERS, Rows, has_finite_scales, to_float32
from mudpuppy.export.gguf.refusals import ExportRefused
from mudpuppy.export.gguf.trial import try_library, try_program
from mudpuppy.export.gguf.whole_file import WholeFile

PIECE_VALUES = 1 << 17
"""Values that a thread takes at a time: half a megabyte of float32, for the second cache."""
SLOW_PIECE_VALUES = 1 << 15
"""The same where llama.cpp computes, which takes longer: enough pieces for many threads."""


class Quantiser:
    """Turns rows of floats into the bytes of a GGUF tensor, on several threads.

    Args:
        name: what quantises, with its version.
        library: llama.cpp's, where types are needed that numpy does not make.
        whole_file: a program that takes whole files, where there is no library.
        threads: by default as many as this process may use processors.
    """

    def __init__(
        self,
        name: str,
        *,
        library: Ggml | None = None,
        whole_file: WholeFile | None = None,
        threads: int | None = None,
    ) -> None:
        self.name = name
        self.whole_file = whole_file
        self._library = library
        self._pool = ThreadPoolExecutor(threads or usable_processors())

    def close(self) -> None:
        """End the threads; what has not begun is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def quantise(self, rows: Rows, type_name: str) -> NDArray[np.uint8]:
        """Return the bytes of some rows, as ggml writes them.

        Args:
            rows: float32, float16, or uint16 for the bits of bfloat16; (rows, columns), contiguous.
                The columns must be a multiple of the type's block.
            type_name: ggml's name of the type, such as `Q4_K`.

        Returns:
            (rows, bytes of a row).

        Raises:
            EngineError: a value is infinite or not a number, or too large for the type's scales.
            ValueError: rows of this length have no such type, or nothing here makes it.
        """
        form = type_form(type_name)
        if rows.ndim != 2 or rows.shape[1] % form.block:
            raise ValueError(f"{type_name} cannot hold rows of shape {rows.shape}")
        if type_name not in WRITERS and self._library is None:
            raise ValueError(f"{self.name} makes no {type_name}")
        rows = np.ascontiguousarray(rows)
        out = np.empty((rows.shape[0], form.row_bytes(rows.shape[1])), np.uint8)
        values = PIECE_VALUES if type_name in WRITERS else SLOW_PIECE_VALUES
        step = max(1, values // max(1, rows.shape[1]))
        starts = range(0, rows.shape[0], step)

        def work(start: int) -> None:
            self._quantise(rows[start : start + step], type_name, form, out[start : start + step])

        for _ in self._pool.map(work, starts):
            pass
        return out

    def _quantise(self, rows: Rows, type_name: str, form: TypeForm, out: NDArray[np.uint8]) -> None:
        if writer := WRITERS.get(type_name):
            writer(rows, out)
            is_valid = type_name != "Q8_0" or has_finite_scales(out)
        else:
            is_valid = self._call_library(to_float32(rows), form, out)
        if not is_valid:
            raise EngineError(f"a value is infinite, not a number, or too large for {type_name}")

    def _call_library(
        self, rows: NDArray[np.float32], form: TypeForm, out: NDArray[np.uint8]
    ) -> bool:
        """Quantise by llama.cpp and return whether all is finite, before and after."""
        library = self._library
        assert library is not None
        if not np.isfinite(rows).all():  # its arithmetic has no meaning for these
            return False
        number, target = form.number, out.ctypes.data
        library.quantise(number, rows.ctypes.data, target, *rows.shape)
        return library.is_valid(number, target, out.nbytes)


def usable_processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def type_form(name: str) -> TypeForm:
    """Return how ggml stores a type.

    Raises:
        ValueError: there is no type of this name.
    """
    try:
        number = gguf.GGMLQuantizationType[name]
    except KeyError:
        raise ValueError(f"ggml has no type {name!r}") from None
    block, block_bytes = gguf.GGML_QUANT_SIZES[number]
    return TypeForm(int(number), block, block_bytes)


@contextmanager
def open_quantiser(types: Collection[str], llama_cpp: Path | None = None) -> Iterator[Quantiser]:
    """Yield what makes all of these types, after a trial of it.

    Args:
        types: ggml's names of the types that are needed.
        llama_cpp: where to look for llama.cpp, and nowhere else; None for what is installed.

    Raises:
        ExportRefused: MP-X07, nothing here makes them; it says what was tried.
        UsageError: there is nothing of the kind at `llama_cpp`.
    """
    quantiser = _open(native_types(types), llama_cpp)
    try:
        yield quantiser
    finally:
        quantiser.close()


def _open(types: set[str], llama_cpp: Path | None) -> Quantiser:
    if not types:
        return Quantiser(f"numpy {np.__version__}")
    forms = {name: type_form(name) for name in sorted(types)}
    tried = []
    for candidate in find_candidates(llama_cpp):
        try:
            return _try(candidate, forms)
        except Unusable as error:
            tried.append(f"  - {candidate.name} ({candidate.path}): {error}")
    raise ExportRefused(
        "MP-X07",
        "\n".join([f"nothing here can quantise to {', '.join(forms)}", *tried]),
        hint="pip install 'mudpuppy[serve]' brings llama.cpp's quantiser, --llama-cpp-path names"
        " another; --quant f16, bf16 and q8_0 need none",
    )


def _try(candidate: Candidate, forms: dict[str, TypeForm]) -> Quantiser:
    if not candidate.is_library:
        try_program(candidate.path)
        program = WholeFile(candidate.path, usable_processors())
        return Quantiser(f"{candidate.name} ({candidate.path})", whole_file=program)
    try_library(candidate.path, forms)
    name = f"{candidate.name} (ggml_quantize_chunk)"
    return Quantiser(name, library=Ggml(str(candidate.path)))
