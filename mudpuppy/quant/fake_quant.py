"""Fake quantisation: linear layers that train as if they already were int8.

Every forward pass rounds weight and input to the grid of `mudpuppy.quant.int8_matrix` and computes
just what the int8 layer will compute. Rounding has no slope, so the backward pass takes it for the
identity (the straight-through estimator, Bengio et al., arXiv 1308.3432; for networks in integers
Jacob et al., arXiv 1712.05877); with a scale that follows the largest value nothing is ever
clipped, and no gradient has to be masked. The weights themselves stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from mudpuppy.errors import EngineError
from mudpuppy.quant.blocks import computing_as, find_decoder_layers, find_linears
from mudpuppy.quant.int8_matrix import Int8Rows, multiply, round_rows


class _FakeQuantLinear(torch.autograd.Function):
    """`F.linear` over rounded input and weight, which are kept as int8 for backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        rows, matrix = round_rows(x.flatten(0, -2)), round_rows(weight)
        ctx.save_for_backward(
            rows.levels.to(torch.int8), rows.scales, matrix.levels.to(torch.int8), matrix.scales
        )
        ctx.dtypes = (x.dtype, weight.dtype, None if bias is None else bias.dtype)
        y = multiply(rows, matrix, dtype).view(*x.shape[:-1], weight.shape[0])
        return y if bias is None else y + bias.to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x_levels, x_scales, w_levels, w_scales = ctx.saved_tensors
        x_dtype, w_dtype, b_dtype = ctx.dtypes
        flat = grad.flatten(0, -2)
        dx = dw = db = None
        with torch.autocast(grad.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                matrix = Int8Rows(w_levels, w_scales).dequantise(grad.dtype)
                dx = (flat @ matrix).to(x_dtype).view(*grad.shape[:-1], w_levels.shape[1])
            if ctx.needs_input_grad[1]:
                rows = Int8Rows(x_levels, x_scales).dequantise(grad.dtype)
                dw = (flat.t() @ rows).to(w_dtype)
            if ctx.needs_input_grad[2]:
                db = flat.to(torch.float32).sum(0).to(b_dtype)
        return dx, dw, db, None


def fake_quant_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return what the int8 layer will return for `x` (..., in), with gradients.

    Args:
        x: (..., in), at least one dimension; a scale for every token.
        weight: (out, in); a scale for every row.
        bias: (out), or None; not rounded.

    Returns:
        (..., out) in autocast's dtype, or else that of `x`.
    """
    kind = x.device.type
    is_cast = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    dtype = torch.get_autocast_dtype(kind) if is_cast else x.dtype
    result = _FakeQuantLinear.apply(  # type: ignore[no-untyped-call]
        x if x.dim() > 1 else x.unsqueeze(0), weight, bias, dtype
    )
    return cast(Tensor, result if x.dim() > 1 else result.squeeze(0))


class FakeQuantLinear(nn.Linear):
    """A linear layer that computes as its int8 form will; its parameters are the plain layer's."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the int8 layer's answer, with gradients."""
        return fake_quant_linear(input, self.weight, self.bias)


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
def fake_quantised(model: nn.Module) -> Iterator[list[str]]:
    """Let the linear layers of the decoder blocks compute as int8 ones inside the block.

    Yields:
        The names of the layers, in the model's order.

    Raises:
        EngineError: there is no such layer.
    """
    layers = find_quantised(model)
    with computing_as(layers.values(), FakeQuantLinear):
        yield list(layers)
