"""Block-wise symmetric int4: how a matrix becomes packed levels and scales, and comes back.

The definition, complete enough to write it again in numpy (`w` is float32, `block` the block size):

    blocks   the columns of each row, `block` at a time; the last block of a row may be short
    scale    absmax(block of w) / 7, float32, shape (out, ceil(in / block))
    level    clip(rint(w / scale), -7, 7), rint to even; 0 where scale is 0
    value    float32(level) * scale, then cast to the wanted dtype
    packing  nibble = level + 8; byte j of a row holds column 2j low and column 2j + 1 high;
             an odd last column is followed by a nibble 8 (level 0)

Scales are float32, not bfloat16: a bfloat16 scale may round down, which clips the largest weight of
the block and breaks the bound |w - value| <= scale / 2. The price is 0.25 bits per weight at block
size 64. Level -8 is never used, so that the grid is symmetric.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mudpuppy.errors import EngineError

SCHEME = "int4-symmetric-blockwise"
"""Name of the scheme, as it is written into a checkpoint's provenance."""
BITS = 4
"""Bits per level."""
MAX_LEVEL = 7
"""Largest level; the smallest is its negative."""
DEFAULT_BLOCK_SIZE = 64
"""Columns that share a scale."""

_OFFSET = 8


class PackedInt4(NamedTuple):
    """A matrix as packed levels and scales."""

    qweight: Tensor
    """uint8, (out, ceil(in / 2)): two levels per byte."""
    scales: Tensor
    """float32, (out, ceil(in / block_size)): the value of level 1."""
    in_features: int
    """Columns of the matrix."""
    block_size: int
    """Columns that share a scale."""


def scheme(block_size: int = DEFAULT_BLOCK_SIZE) -> dict[str, Any]:
    """Return what a reader must know to undo the packing."""
    return {"scheme": SCHEME, "bits": BITS, "block_size": block_size}


@torch.no_grad()
def quantize_int4(weight: Tensor, block_size: int = DEFAULT_BLOCK_SIZE) -> PackedInt4:
    """Round a matrix to int4 levels, one scale for `block_size` columns of a row.

    Args:
        weight: (out, in), any floating dtype, on any device.
        block_size: columns that share a scale, at least 1.

    Raises:
        EngineError: the matrix holds a NaN or an infinity.
        ValueError: the shape or the block size makes no sense.
    """
    if weight.dim() != 2 or weight.numel() == 0:
        raise ValueError(f"expected a matrix (out, in) with elements, got {tuple(weight.shape)}")
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    dense = weight.detach().to(torch.float32)
    if not bool(torch.isfinite(dense).all()):
        count = int((~torch.isfinite(dense)).sum())
        raise EngineError(f"{count} of {dense.numel()} weights are NaN or infinite")
    out_features, in_features = dense.shape
    padding = -in_features % block_size
    blocks = torch.nn.functional.pad(dense, (0, padding)).view(out_features, -1, block_size)
    scales = blocks.abs().amax(dim=2) / MAX_LEVEL
    divisor = torch.where(scales == 0, torch.ones_like(scales), scales)
    levels = (blocks / divisor.unsqueeze(2)).round_().clamp_(-MAX_LEVEL, MAX_LEVEL)
    # a block of subnormal numbers may have a scale that underflows to 0
    levels.masked_fill_((scales == 0).unsqueeze(2), 0)
    levels = levels.view(out_features, -1)[:, :in_features]
    return PackedInt4(_pack_nibbles(levels), scales, in_features, block_size)


def dequantize_int4(packed: PackedInt4, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the dense matrix (out, in) in `dtype`, computed in float32 and rounded once."""
    qweight, scales, in_features, block_size = packed
    pairs = torch.stack((qweight & 0x0F, qweight >> 4), dim=2).view(qweight.shape[0], -1)
    dense = pairs[:, :in_features].to(torch.float32).sub_(_OFFSET)
    whole = in_features - in_features % block_size
    blocks = whole // block_size
    if whole:
        view = dense[:, :whole].view(-1, blocks, block_size)
        view.mul_(scales[:, :blocks].unsqueeze(2))
    if whole < in_features:
        dense[:, whole:].mul_(scales[:, -1:])
    return dense.to(dtype)


def _pack_nibbles(levels: Tensor) -> Tensor:
    """Pack levels -7..7 (out, in) two to a byte, the even column low."""
    nibbles = torch.nn.functional.pad(levels, (0, levels.shape[1] % 2)).add_(_OFFSET)
    nibbles = nibbles.to(torch.uint8)
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)


def check_round_trip(device: torch.device | str) -> float:
    """Quantise a fixed gaussian matrix on `device`, and check the result against the definition.

    A wrong kernel gives an error near 1, without any exception: some 4-bit kernels did on some
    GPUs. Run this once before a device is trusted with packed weights.

    Returns:
        The relative root mean square error of the round trip, about 0.10 where all is well.

    Raises:
        EngineError: the values differ from the CPU's, or the error is above 0.15.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 257, generator=generator)
    expected = dequantize_int4(quantize_int4(weight))
    value = dequantize_int4(quantize_int4(weight.to(device))).cpu()
    error = float((value - weight).norm() / weight.norm())
    agrees = torch.allclose(value, expected, rtol=0.0, atol=1e-4)
    if not agrees or not error < 0.15:
        raise EngineError(
            f"the int4 round trip is wrong on {device}: relative error {error:.3f}, expected 0.10",
            hint="train with --method lora here, or with another build of torch",
        )
    return error
