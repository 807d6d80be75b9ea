"""Values of ggml's block types: scales checked here, levels decoded by the package `gguf`.

A block of 32 or 256 numbers has one or two scales (float16, in a few types float32 or a power of
two) and levels of a few bits. Every value is a finite level times a scale, so that a NaN or an
infinity in the scales is one in the values, and there is no other.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.evidence.gguf.file import TYPES
from harness.evidence.source import CheckpointEvidence, Depth, provides
from harness.facts.checkpoint import Tensor
from harness.registry import Missing
from mudpuppy.files import open_regular

BLOCKS = {name: (block, size) for name, block, size in TYPES.values() if block > 1}
"""Elements and bytes of a block, by type."""
SCALES: dict[str, tuple[tuple[int, ...], str]] = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS"), ((0,), "<f2")),
    **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S"), ((0,), "<f2")),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), ((0, 2), "<f2")),
    "Q2_K": ((80, 82), "<f2"),
    "Q3_K": ((108,), "<f2"),
    "Q6_K": ((208,), "<f2"),
    "Q8_K": ((0,), "<f4"),
    "TQ1_0": ((52,), "<f2"),
    "TQ2_0": ((64,), "<f2"),
    "MXFP4": ((0,), "e8m0"),
}
"""Where in a block its scales lie, and of which type they are. IQ1_M spreads its over the block."""
CHUNK_BYTES = 1 << 20
_NAN_EXPONENT = 255
"""The one byte of e8m0 that is no number."""


def count_bad_blocks(raw: NDArray[np.uint8], dtype: str) -> int:
    """Return how many of the blocks in `raw` have a scale that is NaN or infinite."""
    if dtype not in SCALES:
        return 0
    places, form = SCALES[dtype]
    rows = raw.reshape(-1, BLOCKS[dtype][1])
    if form == "e8m0":
        return int(np.count_nonzero(rows[:, places[0]] == _NAN_EXPONENT))
    width = int(form[2])
    bad = np.zeros(len(rows), dtype=bool)
    for place in places:
        scale = np.ascontiguousarray(rows[:, place : place + width]).view(form)[:, 0]
        bad |= ~np.isfinite(scale)
    return int(bad.sum())


@cache
def _load_decoder() -> Any | None:
    """Return the package's module of decoders, or None where it is not installed."""
    try:
        return importlib.import_module("gguf.quants")
    except ImportError:
        return None


@provides("bad_blocks", Depth.WEIGHTS)
def count_all(evidence: CheckpointEvidence) -> dict[str, int]:
    """Return how many blocks have a bad scale, by tensor, where levels cannot be decoded."""
    undecodable: tuple[Tensor, ...] = evidence.get("undecodable")
    return {
        tensor.name: sum(_count_in(evidence.folder / tensor.file, tensor))
        for tensor in undecodable
        if tensor.dtype in SCALES
    }


def _count_in(path: Path, tensor: Tensor) -> Iterator[int]:
    """Yield the bad blocks of a tensor, part by part."""
    size = BLOCKS[tensor.dtype][1]
    step = CHUNK_BYTES // size * size
    try:
        with open_regular(path) as handle:
            handle.seek(tensor.start)
            for start in range(tensor.start, tensor.end, step):
                raw = handle.read(min(step, tensor.end - start))
                whole = len(raw) // size * size
                yield count_bad_blocks(np.frombuffer(raw[:whole], np.uint8), tensor.dtype)
    except OSError as problem:
        raise Missing(f"{tensor.file} cannot be read: {problem.strerror}") from problem


@cache
def is_decoded(dtype: str) -> bool:
    """Whether values of a block type can be decoded here: the package is there and knows it."""
    if dtype not in BLOCKS or _load_decoder() is None or _kind(dtype) is None:
        return False
    try:
        decode_blocks(np.zeros(BLOCKS[dtype][1], np.uint8), dtype)
    except NotImplementedError:
        return False
    return True


@cache
def _kind(dtype: str) -> Any:
    constants = importlib.import_module("gguf.constants")
    return getattr(constants.GGMLQuantizationType, dtype, None)


def decode_blocks(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """Return the values of whole blocks, one after the other."""
    decoder = _load_decoder()
    assert decoder is not None
    rows = raw.reshape(-1, BLOCKS[dtype][1])
    with np.errstate(all="ignore"):  # a damaged scale is what is looked for, not an accident
        values = decoder.dequantize(rows, _kind(dtype)).astype(np.float32, copy=False)
    return np.ascontiguousarray(values).reshape(-1)
