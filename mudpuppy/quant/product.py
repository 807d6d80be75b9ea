"""Products with a packed matrix that never hold it dense: tile by tile, forward and backward.

The forward pass works on some rows of the weight at a time, the backward pass on some columns, so
that every number of the result is one sum, made at once, as in a product with the dense weight.
What is kept for the backward pass is the packed weight; its tiles are made again there.

Measured on two cores with 512 tokens (docs/performance.md): the dense copy of a large weight costs
three times as much as its tiles, which stay in the processor's cache; small weights are best made
whole.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from mudpuppy.quant.formats import FORMATS, Format, Packed
from mudpuppy.quant.formats.lookup import CHUNK, room
from mudpuppy.quant.kernels.choose import dequantise_into, find_fused
from mudpuppy.quant.workspace import Space, borrowed, room_for

TILE_BYTES = 6 << 20
"""Bytes of a tile on a processor."""
WHOLE_BYTES = 8 << 20
"""A weight of at most so many bytes is made whole on a processor."""
DEVICE_TILE_BYTES = 64 << 20
"""Bytes of a tile on other devices, whose products want to be large (not measured)."""
MIN_TILE = 64
"""Fewest rows or columns of a tile."""
_PER_WEIGHT = 6
"""Bytes of index and of float32 for every weight that is looked up at once."""


def workspace_bytes(weights: int, itemsize: int, *, on_cpu: bool) -> int:
    """Return about what products with a matrix of so many weights take beside their result."""
    if on_cpu:
        chunk = min(weights, CHUNK)
        return min(weights * itemsize, WHOLE_BYTES) + _PER_WEIGHT * chunk
    tile = min(weights, DEVICE_TILE_BYTES // itemsize)
    return tile * (itemsize + _PER_WEIGHT)


def packed_linear(
    x: Tensor, packed: Packed, form: Format, bias: Tensor | None, compute_dtype: torch.dtype
) -> Tensor:
    """Return `x @ weight.T + bias`.

    Args:
        x: (..., in), floating.
        packed: the weight (out, in).
        form: its format.
        bias: (out,), of the dtype of `x`.
        compute_dtype: what the weight is rounded to before it takes the dtype of `x`.
    """
    result = _Product.apply(  # type: ignore[no-untyped-call]
        x, packed.qweight, packed.scales, bias, (form.name, *packed[2:]), compute_dtype, False
    )
    return cast(Tensor, result)


class _Product(torch.autograd.Function):
    """`x @ weight.T + bias`, or `x @ weight`; the gradient of each is the other."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        qweight: Tensor,
        scales: Tensor,
        bias: Tensor | None,
        layout: tuple[str, int, int],
        compute_dtype: torch.dtype,
        turned: bool,
    ) -> Tensor:
        ctx.save_for_backward(qweight, scales)
        ctx.settings = (layout, compute_dtype, turned)
        settings = (*layout, compute_dtype, turned)
        if torch.compiler.is_compiling():
            made = torch.ops.mudpuppy.packed_product(x, qweight, scales, bias, *settings)
            return cast(Tensor, made)
        return multiply(x, qweight, scales, bias, *settings)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        qweight, scales = ctx.saved_tensors
        layout, compute_dtype, turned = ctx.settings
        grad_x = grad_bias = None
        with torch.autocast(grad.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                grad_x = _Product.apply(  # type: ignore[no-untyped-call]
                    grad, qweight, scales, None, layout, compute_dtype, not turned
                )
            if ctx.needs_input_grad[3]:
                grad_bias = grad.flatten(0, -2).sum(0) if grad.dim() > 1 else grad
        return grad_x, None, None, grad_bias, None, None, None


def multiply(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    name: str,
    in_features: int,
    block_size: int,
    compute_dtype: torch.dtype,
    turned: bool,
) -> Tensor:
    """Return `x @ weight.T + bias`, or `x @ weight` where it is turned, without a gradient.

    Raises:
        TypeError: `x` holds no floating numbers.
    """
    if not x.is_floating_point():
        raise TypeError(f"a product with a 4-bit weight takes floating numbers, not {x.dtype}")
    packed = Packed(qweight, scales, in_features, block_size)
    job = _Job(FORMATS[name], packed, x.dtype, compute_dtype)
    flat = x.reshape(-1, x.shape[-1])
    width = in_features if turned else qweight.shape[0]
    y = torch.empty(flat.shape[0], width, dtype=x.dtype, device=x.device)
    fused = find_fused(job.form, packed, flat)
    if fused is not None and turned:
        fused.multiply_turned(job.form, packed, flat, y, job.first)
    elif fused is not None:
        fused.multiply(job.form, packed, flat, bias, y, job.first)
    elif flat.shape[0]:
        job.fill_turned(flat, y) if turned else job.fill(flat, bias, y)
    return y.view(*x.shape[:-1], width)


class _Job:
    """One product: what the weight is, and how its tiles are made."""

    def __init__(
        self, form: Format, packed: Packed, dtype: torch.dtype, compute_dtype: torch.dtype
    ) -> None:
        self.form, self.packed = form, packed
        self.dtype = dtype
        # float32 holds the values themselves: rounding them once more is rounding them once
        self.first = dtype if compute_dtype == torch.float32 else compute_dtype
        self.rows, self.columns = packed.qweight.shape[0], packed.in_features
        on_cpu = packed.qweight.device.type == "cpu"
        self.tile_bytes = TILE_BYTES if on_cpu else DEVICE_TILE_BYTES
        size = self.rows * self.columns * dtype.itemsize
        self.is_whole = size <= (WHOLE_BYTES if on_cpu else DEVICE_TILE_BYTES)

    def _step(self, length: int, count: int, unit: int) -> int:
        """Return how many of `count` rows or columns of `length` numbers make a tile."""
        if self.is_whole:
            return count
        wanted = max(MIN_TILE, self.tile_bytes // (length * self.dtype.itemsize))
        return min(count, max(unit, wanted // unit * unit))

    def fill(self, x: Tensor, bias: Tensor | None, y: Tensor) -> None:
        """Write `x @ weight.T + bias` into `y`, some rows of the weight at a time."""
        step = self._step(self.columns, self.rows, 1)
        with borrowed(self._room(step, self.columns), self.packed.qweight) as space:
            tile = space.take(step * self.columns, self.dtype)
            for start in range(0, self.rows, step):
                stop = min(start + step, self.rows)
                weight = self._make(tile, (start, stop), (0, self.columns), space).t()
                part = y[:, start:stop]
                if bias is None:
                    torch.mm(x, weight, out=part)
                else:
                    torch.addmm(bias[start:stop], x, weight, out=part)

    def fill_turned(self, x: Tensor, y: Tensor) -> None:
        """Write `x @ weight` into `y`, some columns of the weight at a time."""
        unit = self.packed.block_size * (1 + self.packed.block_size % 2)
        step = self._step(self.rows, self.columns, unit)
        with borrowed(self._room(self.rows, step), self.packed.qweight) as space:
            tile = space.take(self.rows * step, self.dtype)
            for start in range(0, self.columns, step):
                stop = min(start + step, self.columns)
                weight = self._make(tile, (0, self.rows), (start, stop), space)
                torch.mm(x, weight, out=y[:, start:stop])

    def _room(self, rows: int, columns: int) -> int:
        """Return the bytes of workspace that tiles of this size take."""
        pieces = [(rows * columns, self.dtype)]
        if self.first != self.dtype:
            pieces.append((rows * columns, self.first))
        return room_for(*pieces) + room(rows, columns)

    def _make(
        self, buffer: Tensor, rows: tuple[int, int], columns: tuple[int, int], space: Space
    ) -> Tensor:
        """Return a tile of the weight, which lies in `buffer`."""
        shape = (rows[1] - rows[0], columns[1] - columns[0])
        count = shape[0] * shape[1]
        tile = buffer[:count].view(shape)
        rest = space.rest()
        target = tile if self.first == self.dtype else rest.take(count, self.first).view(shape)
        dequantise_into(self.form, self.packed, target, rows, columns, rest)
        return tile if target is tile else tile.copy_(target)


_packed_product = torch.library.custom_op(
    "mudpuppy::packed_product",
    multiply,
    mutates_args=(),
    schema=(
        "(Tensor x, Tensor qweight, Tensor scales, Tensor? bias, str name, int in_features, "
        "int block_size, ScalarType compute_dtype, bool turned) -> Tensor"
    ),
)
"""The product as one operation of torch's, for graphs that are compiled."""


@_packed_product.register_fake
def _shape_of_product(
    x: Tensor, qweight: Tensor, scales: Tensor, bias: Tensor | None, *settings: Any
) -> Tensor:
    """Return an empty result, for tracing."""
    del scales, bias
    _, in_features, _, _, turned = settings
    width = in_features if turned else qweight.shape[0]
    return x.new_empty((*x.shape[:-1], width))
