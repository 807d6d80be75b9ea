"""The Triton kernels as torch sees them: dequantise rows, and products for few tokens.

Which is better depends on the number of tokens. Dequantising a weight of 4 bits into a scratch
buffer moves 4.5 bytes a weight, the fused product 0.53, but it makes the weight anew for every tile
of tokens and has no vendor's matrix code. What is here was checked through Triton's interpreter
only; no speed on any GPU is known yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mudpuppy.quant.kernels.common import FLOATS, Range, is_e8m0, rows_are_dense

if TYPE_CHECKING:
    from mudpuppy.quant.formats.interface import Format, Packed

MAX_FUSED_TOKENS = 128
"""Tokens up to which the fused product is taken; computed, not measured. For a weight of 4096 x
11008 on 4.8 TB/s, dequantising costs 42 us and dequantising on the way 5 us; with two tiles of 64
tokens the fused product would have to be three times slower than a vendor's to lose."""
BYTES = 32
"""Bytes of a row that a step of a product takes: 64 columns, a block of most formats."""
ROW_BYTES = 512
"""Bytes of a row that a program of `dequantise_rows` takes."""
ROWS = 32
"""Rows of the weight that a step takes: 4096 of them keep 128 compute units busy."""


class TritonKernel:
    """The Triton kernels on one device.

    Raises:
        ImportError: triton is not installed, or cannot be imported.
    """

    def __init__(self) -> None:
        from mudpuppy.quant.kernels import triton_source

        self._source: Any = triton_source
        types = self._source.tl
        self._types = dict(zip(FLOATS, (types.float32, types.float16, types.bfloat16), strict=True))
        self._levels: dict[tuple[tuple[float, ...], torch.device], Tensor] = {}

    def takes(self, form: Format, packed: Packed, out: Tensor) -> bool:
        """Return whether these tensors are such as the kernels can read and write."""
        return (
            out.dtype in FLOATS
            and is_e8m0(form, packed.scales.dtype) is not None
            and packed.qweight.dtype == torch.uint8
            and all(map(rows_are_dense, (*packed[:2], out)))
        )

    def dequantise_into(
        self, form: Format, packed: Packed, out: Tensor, rows: Range, columns: Range
    ) -> None:
        """Write `packed[rows, columns]` to `out`; arguments as in `Format.dequantise_into`."""
        q = packed.qweight[rows[0] : rows[1], columns[0] // 2 :]
        scales = packed.scales[rows[0] : rows[1], columns[0] // packed.block_size :]
        height, width = out.shape
        grid = (height, -(-((width + 1) // 2) // ROW_BYTES))
        self._source.dequantise_rows[grid](
            *(q, scales, self._levels_of(form, out.device), out, width, packed.block_size),
            *(q.stride(0), scales.stride(0), out.stride(0)),
            BYTES=ROW_BYTES,
            **self._kind(form, packed),
        )

    def multiplies(self, form: Format, packed: Packed, x: Tensor) -> bool:
        """Return whether the fused product is to be taken for `x` (tokens, ...)."""
        return 0 < x.shape[0] <= MAX_FUSED_TOKENS and self.takes(form, packed, x)

    def multiply(
        self,
        form: Format,
        packed: Packed,
        x: Tensor,
        bias: Tensor | None,
        y: Tensor,
        weight_dtype: torch.dtype,
    ) -> None:
        """Write `x @ weight.T + bias` into `y`.

        Args:
            form: the format of the weight.
            packed: the weight (out, in).
            x: (tokens, in), dense rows.
            bias: (out,), or None.
            y: (tokens, out), dense rows.
            weight_dtype: what the weight is rounded to before it takes the type of `x`.
        """
        tokens, (rows, columns) = x.shape[0], (packed.qweight.shape[0], packed.in_features)
        tile = _token_tile(tokens)
        grid = (-(-tokens // tile), -(-rows // ROWS))
        strides = (x.stride(0), packed.qweight.stride(0), packed.scales.stride(0), y.stride(0))
        self._source.multiply[grid](
            *(x, packed.qweight, packed.scales, self._levels_of(form, x.device)),
            *(x if bias is None else bias, y, tokens, rows, columns, packed.block_size, *strides),
            HAS_BIAS=bias is not None,
            WEIGHT=self._types[weight_dtype],
            M=tile,
            N=ROWS,
            BYTES=BYTES,
            **self._kind(form, packed),
        )

    def multiply_turned(
        self, form: Format, packed: Packed, x: Tensor, y: Tensor, weight_dtype: torch.dtype
    ) -> None:
        """Write `x @ weight` into `y`, x (tokens, out), y (tokens, in); else as `multiply`."""
        tokens, (rows, columns) = x.shape[0], (packed.qweight.shape[0], packed.in_features)
        tile = _token_tile(tokens)
        grid = (-(-tokens // tile), -(-((columns + 1) // 2) // BYTES))
        strides = (x.stride(0), packed.qweight.stride(0), packed.scales.stride(0), y.stride(0))
        self._source.multiply_turned[grid](
            *(x, packed.qweight, packed.scales, self._levels_of(form, x.device), y),
            *(tokens, rows, columns, packed.block_size, *strides),
            WEIGHT=self._types[weight_dtype],
            M=tile,
            N=ROWS,
            BYTES=BYTES,
            **self._kind(form, packed),
        )

    def _kind(self, form: Format, packed: Packed) -> dict[str, bool]:
        return {
            "IS_E8M0": bool(is_e8m0(form, packed.scales.dtype)),
            "EVEN_BLOCK": packed.block_size % 2 == 0,
        }

    def _levels_of(self, form: Format, device: torch.device) -> Tensor:
        key = (form.levels, device)
        if key not in self._levels:
            with torch.inference_mode(False):  # kept: it must serve everywhere
                self._levels[key] = torch.tensor(form.levels, dtype=torch.float32, device=device)
        return self._levels[key]


def _token_tile(tokens: int) -> int:
    """Return the tokens of a tile: 16 is the least that matrix units take."""
    return 16 if tokens <= 16 else 32 if tokens <= 32 else 64
