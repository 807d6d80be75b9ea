"""The tensors of a GPTQ checkpoint: levels packed into int32, and the weight they stand for.

The layout is that of GPTQ version 1 (`checkpoint_format: gptq`), for `per_word = 32 / bits`:

    qweight  int32 (in / per_word, out)      levels of consecutive inputs, the first one lowest
    qzeros   int32 (groups, out / per_word)  zero levels minus 1 of consecutive outputs
    scales   float16 (groups, out)
    g_idx    int32 (in,)                     the group of every input
    weight   (level - zero) * scale, transposed to (out, in)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

PACKED_BITS = (2, 4, 8)
"""Bit widths that divide a 32-bit word, so that no level crosses two words."""


class GptqTensors(NamedTuple):
    """One quantised matrix (out, in), as it is stored."""

    qweight: Tensor
    """int32, (in / per_word, out)."""
    qzeros: Tensor
    """int32, (groups, out / per_word)."""
    scales: Tensor
    """float16, (groups, out)."""
    g_idx: Tensor
    """int32, (in,)."""


def pack_rows(levels: Tensor, bits: int) -> Tensor:
    """Pack levels (rows, columns) into int32 (rows / per_word, columns), the first row lowest.

    Raises:
        ValueError: the rows do not fill whole words, the width is not one of `PACKED_BITS`, or a
            level does not fit.
    """
    if bits not in PACKED_BITS:
        raise ValueError(f"bits must be one of {PACKED_BITS}, got {bits}")
    per_word = 32 // bits
    if levels.shape[0] % per_word:
        raise ValueError(f"{levels.shape[0]} rows do not fill words of {per_word} levels")
    if levels.numel() and not 0 <= int(levels.min()) <= int(levels.max()) < 2**bits:
        raise ValueError(f"levels outside 0..{2**bits - 1}")
    words = torch.zeros(
        levels.shape[0] // per_word, levels.shape[1], dtype=torch.int64, device=levels.device
    )
    for place in range(per_word):
        words |= levels[place::per_word].to(torch.int64) << (place * bits)
    # the top bit of the word is the sign of an int32
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def unpack_rows(words: Tensor, bits: int) -> Tensor:
    """Undo `pack_rows`: int32 (rows / per_word, columns) to uint8 levels (rows, columns)."""
    places = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
    # the shift copies the sign into the high bits; the mask takes it away again
    levels: Tensor = (words.unsqueeze(1) >> places.view(1, -1, 1)) & (2**bits - 1)
    return levels.to(torch.uint8).reshape(-1, words.shape[1])


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


def dequantise_gptq(tensors: GptqTensors, bits: int, dtype: torch.dtype) -> Tensor:
    """Return the matrix (out, in) in `dtype`, computed in float32 and rounded once."""
    levels = unpack_rows(tensors.qweight, bits).to(torch.float32)
    zeros = unpack_rows(tensors.qzeros.T, bits).T.to(torch.float32) + 1
    group = tensors.g_idx.long()
    weight = (levels - zeros[group]) * tensors.scales.to(torch.float32)[group]
    return weight.T.to(dtype).contiguous()
