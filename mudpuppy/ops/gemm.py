"""Matrix products: int8 x int8 with scales and zero points, and linear layers in one call.

    qgemm         ((a - za) @ (b - zb).T) * (sa * sb.T) + bias, activation; the sum in integers
    fused_linear  activation(x @ w.T + bias), plain with gradients, or over an int8 weight

The sum of an asymmetric product is made of that of the levels, so that int8 units compute it too:
sum (a - za)(b - zb) = sum ab - za sum b - zb sum a + k za zb (Jacob et al., arXiv 1712.05877,
equation 7). The names are those of the first release (seed 001: "qgemm/fbgemm").
"""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from mudpuppy.errors import EngineError
from mudpuppy.ops.levels import Levels, quantise_per_channel
from mudpuppy.quant.int_sums import sum_products

Activation = Literal["relu", "gelu", "silu"]
"""Activations that a product can end with; gelu is the exact one, with the error function."""


def qgemm(
    left: Levels,
    right: Levels,
    *,
    bias: Tensor | None = None,
    activation: Activation | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return `activation(left @ right.T + bias)` of matrices in int8.

    Args:
        left: (m, k), such as tokens; one scale, or one a row.
        right: (n, k), such as a weight; one scale, or one a row.
        bias: (n), in any floating type; added in float32.
        activation: applied in float32.
        dtype: of the result, which is rounded once.

    Returns:
        (m, n). Sums are exact for any k; scales, bias and activation are float32.

    Raises:
        EngineError: the shapes or the scales do not fit.
    """
    _check_matrices(left, right, bias)
    total = sum_products(left.values, right.values)
    if left.zero is not None or right.zero is not None:
        total = _corrected(total.to(torch.int64), left, right)
    y = total.to(torch.float32) * (left.scale * right.scale.t())
    if bias is not None:
        y = y + bias.to(torch.float32)
    return _activate(y, activation).to(dtype)


def fused_linear(
    x: Tensor,
    weight: Tensor | Levels,
    bias: Tensor | None = None,
    activation: Activation | None = None,
) -> Tensor:
    """Return `activation(x @ weight.T + bias)`.

    A plain weight gives gradients to everything, and keeps one tensor for the activation's: its
    input, or for relu its output. With a weight in int8 the tokens are rounded to int8 as they
    come, and there are no gradients.

    Args:
        x: (..., in).
        weight: (out, in); plain, or levels with one scale or one an output.
        bias: (out), or None.
        activation: relu, gelu (exact) or silu.

    Returns:
        (..., out) in the type of `x`; of the weight's product with `x`, where it is plain.

    Raises:
        EngineError: the shapes do not fit, the activation is not known, or with a weight in int8
            `x` holds a NaN or an infinity.
    """
    _check_activation(activation)
    columns = weight.shape[-1] if len(weight.shape) == 2 else -1
    if not x.dim() or x.shape[-1] != columns:
        raise EngineError(
            f"inputs of shape {list(x.shape)} and a weight of shape {list(weight.shape)} have no "
            "product; expected (..., in) and (out, in)"
        )
    if isinstance(weight, Levels):
        rows = quantise_per_channel(x.reshape(math.prod(x.shape[:-1]), columns), 0)
        y = qgemm(rows, weight, bias=bias, activation=activation, dtype=x.dtype)
        return y.view(*x.shape[:-1], weight.shape[0])
    if activation is None:
        return functional.linear(x, weight, bias)
    result = _FusedLinear.apply(x, weight, bias, activation)  # type: ignore[no-untyped-call]
    return cast(Tensor, result)


def _check_matrices(left: Levels, right: Levels, bias: Tensor | None) -> None:
    shapes = f"{list(left.shape)} and {list(right.shape)}"
    if len(left.shape) != 2 or len(right.shape) != 2 or left.shape[1] != right.shape[1]:
        raise EngineError(f"levels of shapes {shapes} have no product; expected (m, k) and (n, k)")
    for one in (left, right):
        parts = [one.scale] if one.zero is None else [one.scale, one.zero]
        if any(tuple(p.shape) not in ((1, 1), (one.shape[0], 1)) for p in parts):
            raise EngineError(
                f"scales of shape {list(one.scale.shape)} do not fit levels of shape "
                f"{list(one.shape)}; a product takes one scale, or one a row"
            )
    if bias is not None and tuple(bias.shape) != (right.shape[0],):
        raise EngineError(f"a bias of shape {list(bias.shape)} does not fit {right.shape[0]} rows")


def _corrected(total: Tensor, left: Levels, right: Levels) -> Tensor:
    """Return the sums (int64) of what the levels are above their zero points."""
    columns = left.shape[1]
    left_sums = left.values.sum(dim=1, keepdim=True, dtype=torch.int64)
    right_sums = right.values.sum(dim=1, keepdim=True, dtype=torch.int64)
    if left.zero is not None:
        total = total - left.zero.long() * right_sums.t()
    if right.zero is not None:
        total = total - right.zero.long().t() * left_sums
    if left.zero is not None and right.zero is not None:
        total = total + columns * left.zero.long() * right.zero.long().t()
    return total


def _check_activation(activation: str | None) -> None:
    if activation not in (None, "relu", "gelu", "silu"):
        raise EngineError(f"unknown activation '{activation}'; known: relu, gelu, silu")


def _activate(y: Tensor, activation: Activation | None) -> Tensor:
    _check_activation(activation)
    if activation is None:
        return y
    if activation == "relu":
        return functional.relu(y)
    return functional.gelu(y) if activation == "gelu" else functional.silu(y)


def _slope(z: Tensor, activation: Activation) -> Tensor:
    """Return the slope of an activation at its inputs; for relu also at its outputs."""
    if activation == "relu":
        return (z > 0).to(z.dtype)
    if activation == "silu":
        gate = torch.sigmoid(z)
        return gate * (1 + z * (1 - gate))
    bell = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * bell


class _FusedLinear(torch.autograd.Function):
    """`activation(x @ w.T + b)`, of which nothing but one tensor of its size is kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation
    ) -> Tensor:
        z = functional.linear(x, weight, bias)
        y = torch.relu_(z) if activation == "relu" else _activate(z, activation)
        ctx.save_for_backward(x, weight, z)
        ctx.activation, ctx.bias_dtype = activation, None if bias is None else bias.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, z = ctx.saved_tensors
        through = grads[0] * _slope(z, ctx.activation)
        flat, rows = through.reshape(-1, weight.shape[0]), x.reshape(-1, weight.shape[1])
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = (through @ weight.to(through.dtype)).to(x.dtype)
        if ctx.needs_input_grad[1]:
            dw = (flat.t() @ rows.to(flat.dtype)).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            db = flat.sum(0).to(ctx.bias_dtype)
        return dx, dw, db, None
