"""Triton kernels of 4-bit layers, one source for ROCm and CUDA; imports triton at once.

A format is its table of 16 levels and the kind of its scales, as in dequantize.c. The two columns
of a byte are multiplied apart (even columns of x with low halves, odd ones with high halves), so
that nothing has to be interleaved before a product. Products are summed in float32.

There is no autotuning: what is run first would be slow, and what is run would depend on noise.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
"""Whether Triton's interpreter computes. In versions 3.5 to 3.9 it truncates to bfloat16 instead of
rounding, and multiplies the bits of bfloat16 numbers as if they were integers."""


@triton.jit
def _rounded(values, TYPE: tl.constexpr):
    """Round float32 numbers to a type, ties to even."""
    if _INTERPRETED and TYPE == tl.bfloat16:
        bits = values.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        result = bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        result = values.to(TYPE)
    return result


@triton.jit
def _add_product(left, right, total):
    """Return total + left @ right, summed in float32."""
    if _INTERPRETED:
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, total, input_precision="ieee")


@triton.jit
def _scale(pointer, mask, IS_E8M0: tl.constexpr):
    """Load scales as float32; E8M0 is the exponent of a float32 with fraction 0."""
    if IS_E8M0:
        stored = tl.load(pointer, mask=mask, other=127).to(tl.int32)
        bits = tl.where(stored == 0, 1 << 22, stored << 23)
        bits = tl.where(stored == 255, 0x7FC00000, bits)
        return bits.to(tl.float32, bitcast=True)
    else:
        return tl.load(pointer, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _weights(
    q_row, scale_row, levels, byte, mask, columns, block,
    IS_E8M0: tl.constexpr, EVEN_BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the values of the even and of the odd columns of bytes, in float32."""
    packed = tl.load(q_row + byte, mask=mask, other=0).to(tl.int32)
    even_scale = _scale(scale_row + (2 * byte) // block, mask, IS_E8M0)
    if EVEN_BLOCK:
        odd_scale = even_scale
    else:  # a block may end in the middle of a byte, and so may the row: no scale follows it
        is_odd = mask & (2 * byte + 1 < columns)
        odd_scale = _scale(scale_row + (2 * byte + 1) // block, is_odd, IS_E8M0)
    even = tl.load(levels + (packed & 15)) * even_scale
    odd = tl.load(levels + (packed >> 4)) * odd_scale
    return even, odd


@triton.jit
def dequantise_rows(
    q, scales, levels, out,
    columns, block, q_stride, scale_stride, out_stride,
    IS_E8M0: tl.constexpr, EVEN_BLOCK: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """Write the values of one row's piece of BYTES bytes."""
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BYTES
    byte = first + tl.arange(0, BYTES)
    even, odd = _weights(
        q + row * q_stride, scales + row * scale_stride, levels, byte,
        byte < (columns + 1) // 2, columns, block, IS_E8M0, EVEN_BLOCK,
    )  # fmt: skip
    column = 2 * first + tl.arange(0, 2 * BYTES)
    values = _rounded(tl.interleave(even, odd), out.dtype.element_ty)
    tl.store(out + row * out_stride + column, values, mask=column < columns)


@triton.jit
def multiply(
    x, q, scales, levels, bias, y,
    tokens, rows, columns, block, x_stride, q_stride, scale_stride, y_stride,
    IS_E8M0: tl.constexpr, EVEN_BLOCK: tl.constexpr, HAS_BIAS: tl.constexpr,
    WEIGHT: tl.constexpr, M: tl.constexpr, N: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """Write y = x @ w.T + bias for M tokens and N rows of the packed w (rows, columns)."""
    token = tl.program_id(0) * M + tl.arange(0, M)
    row = tl.program_id(1) * N + tl.arange(0, N)
    is_token, is_row = token < tokens, row < rows
    at_x = x + token.to(tl.int64)[:, None] * x_stride
    at_q = q + row.to(tl.int64)[:, None] * q_stride
    at_scale = scales + row.to(tl.int64)[:, None] * scale_stride
    total = tl.zeros((M, N), dtype=tl.float32)
    for first in range(0, (columns + 1) // 2, BYTES):
        byte = first + tl.arange(0, BYTES)
        inside = is_row[:, None] & (byte < (columns + 1) // 2)[None, :]
        even, odd = _weights(
            at_q, at_scale, levels, byte[None, :], inside, columns, block, IS_E8M0, EVEN_BLOCK
        )
        # rounded to the layer's type first: the weight is the one that a merge folds into
        even = _rounded(_rounded(even, WEIGHT).to(tl.float32), x.dtype.element_ty)
        odd = _rounded(_rounded(odd, WEIGHT).to(tl.float32), x.dtype.element_ty)
        column = 2 * byte[None, :]
        here = is_token[:, None]
        x_even = tl.load(at_x + column, mask=here & (column < columns), other=0.0)
        x_odd = tl.load(at_x + column + 1, mask=here & (column + 1 < columns), other=0.0)
        total = _add_product(x_even, tl.trans(even), total)
        total = _add_product(x_odd, tl.trans(odd), total)
    if HAS_BIAS:
        total += tl.load(bias + row, mask=is_row, other=0.0).to(tl.float32)[None, :]
    at_y = y + token.to(tl.int64)[:, None] * y_stride + row[None, :]
    tl.store(at_y, _rounded(total, y.dtype.element_ty), mask=is_token[:, None] & is_row[None, :])


@triton.jit
def multiply_turned(
    x, q, scales, levels, y,
    tokens, rows, columns, block, x_stride, q_stride, scale_stride, y_stride,
    IS_E8M0: tl.constexpr, EVEN_BLOCK: tl.constexpr,
    WEIGHT: tl.constexpr, M: tl.constexpr, N: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """Write y = x @ w for M tokens and 2 BYTES columns of w (rows, columns): a gradient."""
    token = tl.program_id(0) * M + tl.arange(0, M)
    first = tl.program_id(1) * BYTES
    byte = (first + tl.arange(0, BYTES))[None, :]
    is_token, is_byte = token < tokens, byte < (columns + 1) // 2
    at_x = x + token.to(tl.int64)[:, None] * x_stride
    of_even = tl.zeros((M, BYTES), dtype=tl.float32)
    of_odd = tl.zeros((M, BYTES), dtype=tl.float32)
    for start in range(0, rows, N):
        row = start + tl.arange(0, N)
        is_row = row < rows
        even, odd = _weights(
            q + row.to(tl.int64)[:, None] * q_stride,
            scales + row.to(tl.int64)[:, None] * scale_stride,
            levels, byte, is_row[:, None] & is_byte, columns, block, IS_E8M0, EVEN_BLOCK,
        )  # fmt: skip
        even = _rounded(_rounded(even, WEIGHT).to(tl.float32), x.dtype.element_ty)
        odd = _rounded(_rounded(odd, WEIGHT).to(tl.float32), x.dtype.element_ty)
        piece = tl.load(at_x + row[None, :], mask=is_token[:, None] & is_row[None, :], other=0.0)
        of_even = _add_product(piece, even, of_even)
        of_odd = _add_product(piece, odd, of_odd)
    column = (2 * first + tl.arange(0, 2 * BYTES))[None, :]
    values = _rounded(tl.interleave(of_even, of_odd), y.dtype.element_ty)
    at_y = y + token.to(tl.int64)[:, None] * y_stride + column
    tl.store(at_y, values, mask=is_token[:, None] & (column < columns))
