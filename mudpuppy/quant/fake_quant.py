"""Fake quantisation: linear layers that train as if they already were int8.

Every forward pass rounds weight and input to the grid of `mudpuppy.quant.int8_matrix` and computes
just what the int8 layer will compute. Rounding has no slope, so the backward pass takes it for the
identity (the straight-through estimator, Bengio et al., arXiv 1308.3432; for networks in integers
Jacob et al., arXiv 1712.05877). With a scale that follows the largest value nothing is ever
clipped; with one that is given (`mudpuppy.quant.ranges`) a clipped value has no gradient, and the
scale has that of LSQ (Esser et al., arXiv 1902.08153, equation 3). The weights stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mudpuppy.errors import EngineError
from mudpuppy.quant.blocks import computing_as, find_decoder_layers, find_linears
from mudpuppy.quant.int8_matrix import MAX_LEVEL, Int8Rows, multiply, round_rows
from mudpuppy.quant.int_sums import can_multiply_int8
from mudpuppy.quant.ranges import LayerRanges, Ranges, RangeSettings

RANGES = "ranges"
"""Name of the submodule that a layer's ranges are while it trains."""
_KEPT = "_int8_ranges"
"""Attribute under which a plain layer keeps the ranges that training has left."""


class _Side(NamedTuple):
    """Input or weight as a backward pass needs it."""

    rows: Int8Rows
    """What was multiplied."""
    reached: Tensor | None
    """Where the scale was given, what was rounded in units of it: float32, (rows, columns)."""
    inside: Tensor | None
    """Where rounding decided the level, and not clipping."""

    @classmethod
    def recall(cls, kept: Tensor, scales: Tensor, *, given: bool) -> _Side:
        """Make it of what `_FakeQuantLinear.forward` kept."""
        if not given:
            return cls(Int8Rows(kept, scales), None, None)
        reached = kept.detach().to(torch.float32) / scales
        levels = reached.round()
        inside = levels.abs() <= MAX_LEVEL
        return cls(Int8Rows(levels.clamp_(-MAX_LEVEL, MAX_LEVEL), scales), reached, inside)

    def pass_through(self, grad: Tensor) -> Tensor:
        """Return the gradient of what was rounded, from that of the rounded (rows, columns)."""
        return grad if self.inside is None else torch.where(self.inside, grad, 0.0)

    def slope(self, grad: Tensor) -> Tensor:
        """Return the gradient of given scales (rows, 1), with LSQ's factor."""
        assert self.reached is not None
        assert self.inside is not None
        slopes = self.rows.levels - torch.where(self.inside, self.reached, 0.0)
        factor: float = (self.reached.shape[1] * MAX_LEVEL) ** -0.5
        return (grad.to(torch.float32) * slopes).sum(dim=1, keepdim=True) * factor


class _FakeQuantLinear(torch.autograd.Function):
    """`F.linear` over rounded input and weight, which are kept as int8 where nothing is clipped."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        x_scale: Tensor | None,
        w_scales: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        rows, matrix = round_rows(x.flatten(0, -2), x_scale), round_rows(weight, w_scales)
        ctx.save_for_backward(
            rows.levels.to(torch.int8) if x_scale is None else x.flatten(0, -2),
            rows.scales if x_scale is None else x_scale,
            matrix.levels.to(torch.int8) if w_scales is None else weight,
            matrix.scales if w_scales is None else w_scales,
        )
        ctx.given = (x_scale is not None, w_scales is not None)
        ctx.dtypes = (x.dtype, weight.dtype, None if bias is None else bias.dtype)
        y = multiply(rows, matrix, dtype).view(*x.shape[:-1], weight.shape[0])
        return y if bias is None else y + bias.to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x_kept, x_scales, w_kept, w_scales = ctx.saved_tensors
        x_dtype, w_dtype, b_dtype = ctx.dtypes
        x_side = _Side.recall(x_kept, x_scales, given=ctx.given[0])
        w_side = _Side.recall(w_kept, w_scales, given=ctx.given[1])
        flat = grad.flatten(0, -2)
        dx = dw = db = dx_scale = dw_scales = None
        needs_x, needs_w, needs_b, needs_x_scale, needs_w_scales, _ = ctx.needs_input_grad
        with torch.autocast(grad.device.type, enabled=False):
            if needs_x or needs_x_scale:
                through = flat @ w_side.rows.dequantise(grad.dtype)
                dx = x_side.pass_through(through).to(x_dtype)
                dx = dx.view(*grad.shape[:-1], w_kept.shape[1])
                if needs_x_scale:
                    dx_scale = x_side.slope(through).sum(dim=0, keepdim=True)
            if needs_w or needs_w_scales:
                through = flat.t() @ x_side.rows.dequantise(grad.dtype)
                dw = w_side.pass_through(through).to(w_dtype)
                if needs_w_scales:
                    dw_scales = w_side.slope(through)
            if needs_b:
                db = flat.to(torch.float32).sum(0).to(b_dtype)
        return dx, dw, db, dx_scale, dw_scales, None


def fake_quant_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    x_scale: Tensor | None = None,
    w_scales: Tensor | None = None,
) -> Tensor:
    """Return what the int8 layer will return for `x` (..., in), with gradients.

    Args:
        x: (..., in), at least one dimension.
        weight: (out, in).
        bias: (out), or None; not rounded.
        x_scale: float32, (1, 1), for all of `x`; by default every token has its own.
        w_scales: float32, (out, 1); by default those of the rows' largest values.

    Returns:
        (..., out) in autocast's dtype, or else that of `x`.
    """
    kind = x.device.type
    is_cast = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    dtype = torch.get_autocast_dtype(kind) if is_cast else x.dtype
    result = _FakeQuantLinear.apply(  # type: ignore[no-untyped-call]
        x if x.dim() > 1 else x.unsqueeze(0), weight, bias, x_scale, w_scales, dtype
    )
    return cast(Tensor, result if x.dim() > 1 else result.squeeze(0))


class FakeQuantLinear(nn.Linear):
    """A linear layer that computes as its int8 form will; its parameters are the plain layer's."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the int8 layer's answer, with gradients; before rounding begins, the plain one."""
        ranges = self._modules.get(RANGES)
        if not isinstance(ranges, LayerRanges):
            return fake_quant_linear(input, self.weight, self.bias)
        if self.training and torch.is_grad_enabled():
            ranges.observe(input)
        if not ranges.rounding:
            return super().forward(input)
        return fake_quant_linear(
            input,
            self.weight,
            self.bias,
            x_scale=ranges.input_scale(input),
            w_scales=ranges.weight_scales(self.weight),
        )


def ranges_of(layer: nn.Linear) -> Ranges:
    """Return the ranges that a layer has, or that training has left it with."""
    state = layer._modules.get(RANGES)
    if isinstance(state, LayerRanges):
        return state.final()
    kept: Ranges = vars(layer).get(_KEPT, Ranges(None, None))
    return kept


def find_quantised(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the layers that become int8, by name: the linear layers of the decoder blocks.

    Embeddings, norms and the head lie outside the blocks and stay as they are.

    Raises:
        EngineError: there are none.
    """
    stack = find_decoder_layers(model)
    layers = find_linears(stack.layers, stack.name)
    if not layers:
        raise EngineError("the decoder blocks have no linear layer that could become int8")
    return layers


@contextmanager
def fake_quantised(model: nn.Module, settings: RangeSettings | None = None) -> Iterator[list[str]]:
    """Let the linear layers of the decoder blocks compute as int8 ones inside the block.

    Ranges that last longer than a step are parts of the layers inside the block, so that they are
    saved and trained with them; afterwards `ranges_of` knows what they came to.

    Yields:
        The names of the layers, in the model's order.

    Raises:
        EngineError: there is no such layer.
    """
    layers = find_quantised(model)
    for kind in {layer.weight.device.type for layer in layers.values()}:
        can_multiply_int8(kind)  # a compiler would otherwise meet the check inside the layer
    has_state = settings is not None and settings.has_state
    if settings is not None and has_state:
        for layer in layers.values():
            layer.add_module(RANGES, LayerRanges(layer, settings))
    try:
        with computing_as(layers.values(), FakeQuantLinear):
            yield list(layers)
    finally:
        for layer in layers.values() if has_state else ():
            vars(layer)[_KEPT] = ranges_of(layer)
            del layer._modules[RANGES]
