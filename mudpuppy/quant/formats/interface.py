"""What a format is: 16 or 256 levels, a scale for every block of a row, and how both are packed.

One definition serves every format (`n` is a code, `b` the block that a column lies in):

    blocks   the columns of each row, `block_size` at a time; the last block of a row may be short
    value    float32(levels[n]) * float32(scales[row, b]), rounded once to the wanted dtype
    packing  codes of 4 bits: byte j of a row holds column 2j low and column 2j + 1 high; an odd
             last column is followed by the code whose level is 0. Codes of 8 bits: a byte each

What differs is the levels, the type of the scales, and how both are chosen for given weights.
Every step is an operation that IEEE 754 defines to the last bit, and sums over a block are made
pairwise in a written order, so that all devices pack the same weights into the same bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from mudpuppy.errors import EngineError
from mudpuppy.quant.formats.lookup import Table, expand, room
from mudpuppy.quant.workspace import Space, borrowed

CHUNK = {"cpu": 1 << 17}
"""Weights that are packed at once, by device: few enough to stay in a processor's cache."""
DEVICE_CHUNK = 1 << 24
"""The same on every other device."""


class Packed(NamedTuple):
    """A matrix as packed levels and scales; the format is known to whoever holds it."""

    qweight: Tensor
    """uint8, (out, ceil(in / 2)) with two codes a byte, or (out, in) with one."""
    scales: Tensor
    """(out, ceil(in / block_size)), of the format's `scale_dtype`."""
    in_features: int
    """Columns of the matrix."""
    block_size: int
    """Columns that share a scale."""


def require_part(
    form: Format, packed: Packed, out: Tensor, rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    """Refuse to write a part of a packed matrix where that would read or write beside it.

    Raises:
        ValueError: the part is not in the matrix, or does not begin at a block and a byte; `out`
            has another shape; or levels and scales are not of one matrix.
    """
    (top, bottom), (left, right) = rows, columns
    height, width, size = packed.qweight.shape[0], packed.in_features, packed.block_size
    if packed.qweight.shape[1] != form.packed_width(width) or packed.scales.shape != (
        height,
        -(-width // size),
    ):
        raise ValueError(
            f"levels {tuple(packed.qweight.shape)} and scales {tuple(packed.scales.shape)} for "
            f"{width} columns in blocks of {size}"
        )
    if not (0 <= top <= bottom <= height and 0 <= left <= right <= width):
        raise ValueError(f"rows {rows} and columns {columns} of a matrix of {height} x {width}")
    if left % size or left % form.per_byte:
        raise ValueError(f"column {left} does not begin a block of {size}")
    if tuple(out.shape) != (bottom - top, right - left):
        raise ValueError(f"a buffer of shape {tuple(out.shape)} for {rows} x {columns}")


class Format(ABC):
    """A way to hold a matrix in 4 or 8 bits a weight; stateless."""

    name: ClassVar[str]
    """What `--quant` calls it."""
    scheme: ClassVar[str]
    """What provenance calls it."""
    bits: ClassVar[int] = 4
    """Bits a code: 4 or 8."""
    default_block_size: ClassVar[int]
    """Columns that share a scale, where nothing else is asked for."""
    scale_dtype: ClassVar[torch.dtype]
    """Type of the scales as they are held."""
    levels: ClassVar[tuple[float, ...]]
    """The value of every code at scale 1, all of them numbers of float32."""
    zero: ClassVar[int]
    """The code whose level is 0."""
    gaussian_error: ClassVar[float]
    """Relative root mean square error on gaussian weights in blocks of the default size."""
    is_exact_in: ClassVar[frozenset[torch.dtype]] = frozenset()
    """Types in which levels and scales are exact, so that a product in that type is the value."""

    @abstractmethod
    def encode(self, blocks: Tensor, peak: Tensor, search: int) -> tuple[Tensor, Tensor]:
        """Choose scales and codes of blocks (n, block) of finite float32 numbers.

        Args:
            blocks: padded with zeros where a block is short.
            peak: the largest magnitude of every block, (n,).
            search: further scales to try for every block; formats without a search ignore it.

        Returns:
            Codes, uint8 (n, block), and scales, `scale_dtype` (n,).
        """

    @property
    def per_byte(self) -> int:
        """Codes in a byte."""
        return 8 // self.bits

    def packed_width(self, columns: int) -> int:
        """Return the bytes of a row's codes."""
        return -(-columns // self.per_byte)

    def scale_values(self, scales: Tensor) -> Tensor:
        """Return what stored scales stand for, float32."""
        return scales.to(torch.float32)

    def require_block_size(self, block_size: int) -> None:
        """Refuse a block size that the format does not have.

        Raises:
            ValueError: it is below 1.
        """
        if block_size < 1:
            raise ValueError(f"block_size must be at least 1, got {block_size}")

    @torch.no_grad()
    def quantise(self, weight: Tensor, block_size: int | None = None, search: int = 0) -> Packed:
        """Round a matrix to levels, one scale for `block_size` columns of a row.

        Args:
            weight: (out, in), any floating dtype, on any device.
            block_size: columns that share a scale; the format's own where None.
            search: further scales to try for every block.

        Raises:
            EngineError: the matrix holds a NaN or an infinity.
            ValueError: the shape or the block size makes no sense.
        """
        size = self.default_block_size if block_size is None else block_size
        if weight.dim() != 2 or weight.numel() == 0:
            raise ValueError(
                f"expected a matrix (out, in) with elements, got {tuple(weight.shape)}"
            )
        self.require_block_size(size)
        rows, columns = weight.shape
        blocks = -(-columns // size)
        width = self.packed_width(columns)
        qweight = torch.empty(rows, width, dtype=torch.uint8, device=weight.device)
        scales = torch.empty(rows, blocks, dtype=self.scale_dtype, device=weight.device)
        step = max(1, CHUNK.get(weight.device.type, DEVICE_CHUNK) // columns)
        for start in range(0, rows, step):
            part = weight.detach()[start : start + step].to(torch.float32)
            if blocks * size != columns:
                part = torch.nn.functional.pad(part, (0, blocks * size - columns))
            part = part.reshape(-1, size)
            peak = part.abs().amax(dim=1)  # of a NaN it is NaN
            if not bool(torch.isfinite(peak).all()):
                _refuse(weight)
            codes, scale = self.encode(part, peak, search)
            scales[start : start + step] = scale.view(-1, blocks)
            codes = codes.view(-1, blocks * size)[:, :columns]
            qweight[start : start + step] = self._pack(codes)
        return Packed(qweight, scales, columns, size)

    def _pack(self, nibbles: Tensor) -> Tensor:
        """Pack codes (rows, columns): of 4 bits two to a byte, the even column low."""
        if self.per_byte == 1:
            return nibbles
        if nibbles.shape[1] % 2:
            nibbles = torch.nn.functional.pad(nibbles, (0, 1), value=self.zero)
        pairs = nibbles.reshape(-1).view(torch.int16)
        return (pairs | pairs >> 4).to(torch.uint8).view(nibbles.shape[0], -1)

    def dequantise(self, packed: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the dense matrix (out, in) in `dtype`."""
        shape = (packed.qweight.shape[0], packed.in_features)
        dense = torch.empty(shape, dtype=dtype, device=packed.qweight.device)
        self.dequantise_into(packed, dense)
        return dense

    @torch.no_grad()
    def dequantise_into(
        self,
        packed: Packed,
        out: Tensor,
        *,
        rows: tuple[int, int] | None = None,
        columns: tuple[int, int] | None = None,
        space: Space | None = None,
    ) -> None:
        """Write a part of the dense matrix into `out`.

        Args:
            packed: the packed matrix.
            out: (rows, columns), any floating dtype, on the device of `packed`.
            rows: first row and the one after the last; all where None.
            columns: the same of columns; the first must begin a block and a byte.
            space: a borrowed workspace of `lookup.room` bytes; by default one is
                borrowed for the call.

        Raises:
            ValueError: as `require_part` says.
        """
        top, bottom = rows or (0, packed.qweight.shape[0])
        left, right = columns or (0, packed.in_features)
        require_part(self, packed, out, (top, bottom), (left, right))
        if out.numel() == 0:
            return
        qweight = packed.qweight[top:bottom, left // self.per_byte : self.packed_width(right)]
        blocks = slice(left // packed.block_size, -(-right // packed.block_size))
        scales = self.scale_values(packed.scales[top:bottom, blocks])
        if space is not None:
            self.expand(qweight, scales, packed.block_size, out, space.rest())
            return
        with borrowed(room(bottom - top, right - left), packed.qweight) as own:
            self.expand(qweight, scales, packed.block_size, out, own)

    def expand(
        self, qweight: Tensor, scales: Tensor, block: int, out: Tensor, space: Space
    ) -> None:
        """Write the values of packed rows into `out`; arguments as in `lookup.expand`."""
        expand(Table(self.levels, self.is_exact_in), qweight, scales, block, out, space)

    def packed_bytes(self, rows: int, columns: int, block_size: int | None = None) -> int:
        """Return the bytes of levels and scales of a matrix."""
        size = self.default_block_size if block_size is None else block_size
        scales = rows * -(-columns // size) * self.scale_dtype.itemsize
        return rows * self.packed_width(columns) + scales

    def bits_per_weight(self, block_size: int | None = None) -> float:
        """Return the bits a weight, scales included, of rows that blocks divide evenly."""
        size = self.default_block_size if block_size is None else block_size
        return self.bits + 8 * self.scale_dtype.itemsize / size

    def describe(self, block_size: int, search: int = 0) -> dict[str, Any]:
        """Return what a reader must know to make the same values of the same weights."""
        said = {"scheme": self.scheme, "bits": self.bits, "block_size": block_size}
        return {**said, "search": search} if search else said


def _refuse(weight: Tensor) -> None:
    """Say how many weights are not finite in float32, in which they are packed.

    Raises:
        EngineError: always.
    """
    count = int((~torch.isfinite(weight.to(torch.float32))).sum())
    beyond = count - int((~torch.isfinite(weight)).sum())
    what = f", {beyond} of them only in float32" if beyond else ""
    raise EngineError(f"{count} of {weight.numel()} weights are NaN or infinite{what}")
