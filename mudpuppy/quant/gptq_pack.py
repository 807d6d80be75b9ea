"""The tensors of a GPTQ checkpoint: levels packed into int32, and the weight they stand for.

The layout is that of GPTQ version 1 (`checkpoint_format: gptq`), with levels of `bits` bits that
run on through the words of 32, the first one lowest; only levels of 3 bits cross from word to word:

    qweight  int32 (in * bits / 32, out)      levels of consecutive inputs
    qzeros   int32 (groups, out * bits / 32)  zero levels minus 1 of consecutive outputs
    scales   float16 (groups, out)
    g_idx    int32 (in,)                      the group of every input
    weight   (level - zero) * scale, transposed to (out, in)

Version 2 (`gptq_v2`) differs in one thing: it stores the zero levels as they are.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

PACKED_BITS = (2, 3, 4, 8)
"""Bit widths that the layout knows."""


class GptqTensors(NamedTuple):
    """One quantised matrix (out, in), as it is stored."""

    qweight: Tensor
    """int32, (in * bits / 32, out)."""
    qzeros: Tensor
    """int32, (groups, out * bits / 32)."""
    scales: Tensor
    """float16, (groups, out)."""
    g_idx: Tensor
    """int32, (in,)."""


def levels_per_unit(bits: int) -> int:
    """Return the least number of levels that fills whole words: 16, 32, 8 or 4."""
    return 32 // math.gcd(32, bits)


def pack_rows(levels: Tensor, bits: int) -> Tensor:
    """Pack levels (rows, columns) into int32 (rows * bits / 32, columns), the first row lowest.

    Raises:
        ValueError: the rows do not fill whole words, the width is not one of `PACKED_BITS`, or a
            level does not fit.
    """
    if bits not in PACKED_BITS:
        raise ValueError(f"bits must be one of {PACKED_BITS}, got {bits}")
    unit = levels_per_unit(bits)
    if levels.shape[0] % unit:
        raise ValueError(f"{levels.shape[0]} rows do not fill words: {unit} levels do")
    if levels.numel() and not 0 <= int(levels.min()) <= int(levels.max()) < 2**bits:
        raise ValueError(f"levels outside 0..{2**bits - 1}")
    columns = levels.shape[1]
    units = levels.reshape(-1, unit, columns)
    words = torch.zeros(
        units.shape[0], unit * bits // 32, columns, dtype=torch.int64, device=levels.device
    )
    for place in range(unit):
        word, shift = divmod(place * bits, 32)
        level = units[:, place].to(torch.int64) << shift
        words[:, word] |= level & 0xFFFFFFFF
        if shift + bits > 32:
            words[:, word + 1] |= level >> 32
    # the top bit of the word is the sign of an int32
    signed = torch.where(words >= 2**31, words - 2**32, words)
    return signed.to(torch.int32).reshape(-1, columns)


def unpack_rows(words: Tensor, bits: int) -> Tensor:
    """Undo `pack_rows`: int32 (rows * bits / 32, columns) to uint8 levels (rows, columns)."""
    unit, columns = levels_per_unit(bits), words.shape[1]
    grouped = words.reshape(-1, unit * bits // 32, columns)
    levels = torch.empty(grouped.shape[0], unit, columns, dtype=torch.uint8, device=words.device)
    mask = 2**bits - 1
    for place in range(unit):
        word, shift = divmod(place * bits, 32)
        # the shift copies the sign into the high bits; the mask takes it away again
        level = grouped[:, word] >> shift
        if shift + bits > 32:
            level = level & (2 ** (32 - shift) - 1) | grouped[:, word + 1] << (32 - shift)
        levels[:, place] = level & mask
    return levels.reshape(-1, columns)


def pack_matrix(
    levels: Tensor, scales: Tensor, zeros: Tensor, g_idx: Tensor, bits: int
) -> GptqTensors:
    """Pack one quantised matrix.

    Args:
        levels: integers (out, in).
        scales: float16 (groups, out).
        zeros: zero levels (groups, out), at least 1: what is stored is one less.
        g_idx: the group of every input, (in,).
        bits: width of a level.
    """
    return GptqTensors(
        qweight=pack_rows(levels.T, bits).contiguous(),
        qzeros=pack_rows((zeros - 1).T, bits).T.contiguous(),
        scales=scales.contiguous(),
        g_idx=g_idx.to(torch.int32),
    )


def dequantise_gptq(
    tensors: GptqTensors, bits: int, dtype: torch.dtype, *, stored_less: int = 1
) -> Tensor:
    """Return the matrix (out, in) in `dtype`, computed in float32 and rounded once.

    Args:
        tensors: the matrix as it is stored.
        bits: width of a level.
        dtype: type of the result.
        stored_less: by how much zeros are stored less than they are: 1 in version 1, 0 in 2.
    """
    levels = unpack_rows(tensors.qweight, bits).to(torch.float32)
    zeros = unpack_rows(tensors.qzeros.T, bits).T.to(torch.float32) + stored_less
    group = tensors.g_idx.long()
    weight = (levels - zeros[group]) * tensors.scales.to(torch.float32)[group]
    return weight.T.to(dtype).contiguous()
