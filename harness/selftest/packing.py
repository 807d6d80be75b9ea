"""Writers of quantised layers for the self-test, each in the layout that its format defines."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Words = NDArray[np.int32]
Parts = dict[str, NDArray[Any]]
"""The tensors of one layer, by what follows its name."""
NF4_TEXT = """-1 -.6961928009986877 -.5250730514526367 -.39491748809814453 -.28444138169288635
    -.18477343022823334 -.09105003625154495 0 .07958029955625534 .16093020141124725
    .24611230194568634 .33791524171829224 .44070982933044434 .5626170039176941
    .7229568362236023 1"""
NF4_TABLE = np.array([float(word) for word in NF4_TEXT.split()], dtype=np.float32)
"""The 16 values of NF4 (QLoRA, appendix E)."""


def pack_words(levels: NDArray[np.int64], bits: int) -> Words:
    """Pack levels down the rows into 32-bit words, as one stream of bits, the lowest first."""
    flat = ((levels[:, None, :] >> np.arange(bits)[None, :, None]) & 1).astype(np.uint8)
    stream = flat.reshape(-1, levels.shape[1])
    packed = np.packbits(np.ascontiguousarray(stream.T), axis=1, bitorder="little")
    words = np.ascontiguousarray(packed).view("<i4")
    return np.ascontiguousarray(words.T)


def quantise_groups(
    weight: Floats, bits: int, size: int, index: NDArray[np.int64], symmetric: bool
) -> tuple[NDArray[np.int64], Floats, NDArray[np.int64]]:
    """Round a weight (out, in) to levels (in, out); return scales and zeros (groups, out) too."""
    groups = int(index.max()) + 1
    top = 2**bits - 1
    scales = np.empty((groups, weight.shape[0]), np.float32)
    zeros = np.empty((groups, weight.shape[0]), np.int64)
    for group in range(groups):
        part = weight[:, index == group]
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        if symmetric:
            high = np.maximum(-low, high)
            low = -high
        scales[group] = ((high - low) / top).astype(np.float16)
        zeros[group] = (top + 1) // 2 if symmetric else np.round(-low / scales[group])
    levels = np.round(weight.T / scales[index]) + zeros[index]
    return np.clip(levels, 0, top).astype(np.int64), scales, zeros


def pack_gptq(
    weight: Floats,
    *,
    bits: int = 4,
    size: int = 32,
    symmetric: bool = True,
    act_order: bool = False,
    version: int = 1,
) -> Parts:
    """Return a layer as GPTQModel and AutoGPTQ store it; version 1 stores each zero less one."""
    columns = weight.shape[1]
    order = np.random.default_rng(columns).permutation(columns) if act_order else np.arange(columns)
    index = np.empty(columns, np.int64)
    index[order] = np.arange(columns) // size
    levels, scales, zeros = quantise_groups(weight, bits, size, index, symmetric)
    if version == 1 and not symmetric:
        zeros = np.maximum(zeros, 1)  # zero less one must not fall below 0
    stored = zeros - (1 if version == 1 else 0)
    return {
        "qweight": pack_words(levels, bits),
        "qzeros": np.ascontiguousarray(pack_words(stored.T, bits).T),
        "scales": scales.astype(np.float16),
        "g_idx": index.astype(np.int32),
    }


def pack_awq(weight: Floats, *, size: int = 32) -> Parts:
    """Return a layer as AutoAWQ's gemm version stores it: eight outputs a word, interleaved."""
    index = np.arange(weight.shape[1]) // size
    levels, scales, zeros = quantise_groups(weight, 4, size, index, symmetric=False)
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def pack(rows: NDArray[np.int64]) -> Words:
        mixed = rows.reshape(rows.shape[0], -1, 8)[:, :, order].reshape(rows.shape)
        return np.ascontiguousarray(pack_words(mixed.T, 4).T)

    return {"qweight": pack(levels), "qzeros": pack(zeros), "scales": scales.astype(np.float16)}


def pack_nf4(weight: Floats, *, size: int = 64, dtype: str = "bfloat16") -> Parts:
    """Return a layer as bitsandbytes stores it in NF4: blocks of the flattened weight."""
    blocks = weight.reshape(-1, size)
    absmax = np.abs(blocks).max(1)
    edges = (NF4_TABLE[1:] + NF4_TABLE[:-1]) / 2
    levels = np.searchsorted(edges, blocks / absmax[:, None]).astype(np.uint8).ravel()
    state = {"quant_type": "nf4", "blocksize": size, "dtype": dtype, "shape": list(weight.shape)}
    return {
        "weight": ((levels[0::2] << 4) | levels[1::2])[:, None],
        "weight.absmax": absmax,
        "weight.quant_map": NF4_TABLE,
        "weight.quant_state.bitsandbytes__nf4": _text(state),
    }


def _text(value: Any) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(value).encode(), np.uint8).copy()


def pack_nf4_double(weight: Floats, *, size: int = 64) -> Parts:
    """Return a layer in NF4 whose absmax are themselves stored in 8 bits."""
    parts = pack_nf4(weight, size=size)
    absmax = parts["weight.absmax"]
    offset = float(absmax.mean())
    table = np.linspace(-1, 1, 256, dtype=np.float32)
    padded = np.pad(absmax - offset, (0, -absmax.size % 256)).reshape(-1, 256)
    nested = np.abs(padded).max(1).astype(np.float32)
    edges = (table[1:] + table[:-1]) / 2
    levels = np.searchsorted(edges, padded / np.maximum(nested, 1e-12)[:, None]).ravel()
    state = {"quant_type": "nf4", "blocksize": size, "dtype": "bfloat16"}
    state |= {"shape": list(weight.shape), "nested_blocksize": 256}
    state |= {"nested_dtype": "float32", "nested_offset": offset}
    return parts | {
        "weight.absmax": levels[: absmax.size].astype(np.uint8),
        "weight.nested_absmax": nested,
        "weight.nested_quant_map": table,
        "weight.quant_state.bitsandbytes__nf4": _text(state),
    }


def pack_int8(weight: Floats) -> Parts:
    """Return a layer as bitsandbytes' LLM.int8 stores it: rows of int8, and 127's value."""
    scale = np.abs(weight).max(1)
    levels = np.round(weight * (127 / scale[:, None])).astype(np.int8)
    return {"weight": levels, "SCB": scale, "weight_format": np.zeros((), np.uint8)}


Pack = Callable[[Floats], Parts]
"""A writer of one layer."""
