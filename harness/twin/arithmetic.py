"""The rounding of fp8 and int8 training, written once more from their definitions."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

IN_BLOCKS = "layers."
"""Part of the name of every module of a decoder block."""
ELSEWHERE = ("vision", "lora_", "multi_modal")
"""Parts of the names of linear layers that are never rounded."""
SMALLEST = 2.0**-126
"""No scale is smaller."""


def rounded_linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the linear layers of the decoder blocks, which are what a method may round."""
    for name, part in model.named_modules():
        foreign = any(word in name for word in ELSEWHERE)
        if type(part) is nn.Linear and IN_BLOCKS in name and not foreign:
            yield name, part


def compute_rounded(model: nn.Module, product: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Let the linear layers of the decoder blocks multiply by `product(x, weight)`."""
    for _, layer in rounded_linears(model):

        def forward(self: Any, x: Tensor) -> Tensor:
            y = product(x, self.weight)
            return y if self.bias is None else y + self.bias.to(y.dtype)

        vars(layer)["forward"] = types.MethodType(forward, layer)


def type_of(x: Tensor) -> torch.dtype:
    """Return the type of a product of `x`: autocast's, or its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


PeakOf = Callable[[str, Tensor], Tensor]
"""What the largest number of a format stands for, by `input`, `weight` or `gradient`."""


def _own_peak(name: str, tensor: Tensor) -> Tensor:
    del name
    return tensor.detach().float().abs().max()


def _to_fp8(tensor: Tensor, kind: torch.dtype, peak: Tensor) -> Tensor:
    """Return a tensor rounded to an fp8 format whose largest number stands for `peak`, in fp32."""
    largest = torch.finfo(kind).max
    scale = torch.where(peak == 0, torch.ones_like(peak), (peak / largest).clamp(min=SMALLEST))
    return (tensor.float() / scale).clamp(-largest, largest).to(kind).float() * scale


class _Fp8Product(torch.autograd.Function):
    """x @ w.T in E4M3, gradients in E5M2 (Micikevicius et al., arXiv 2209.05433)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, kind: torch.dtype, peak_of: PeakOf) -> Tensor:
        a = _to_fp8(x, torch.float8_e4m3fn, peak_of("input", x))
        b = _to_fp8(weight, torch.float8_e4m3fn, peak_of("weight", weight))
        ctx.peak_of = peak_of
        ctx.save_for_backward(a, b)
        ctx.kinds = (x.dtype, weight.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return (a @ b.t()).to(kind)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        g = _to_fp8(grads[0], torch.float8_e5m2, ctx.peak_of("gradient", grads[0]))
        dx = (g @ b).to(ctx.kinds[0])
        dw = (g.flatten(0, -2).t() @ a.flatten(0, -2)).to(ctx.kinds[1])
        return dx, dw if ctx.needs_input_grad[1] else None, None, None


def fp8_product(x: Tensor, weight: Tensor, peak_of: PeakOf = _own_peak) -> Tensor:
    """Return `x @ weight.T` with both rounded to fp8, one scale for each tensor."""
    product: Any = _Fp8Product.apply
    result: Tensor = product(x, weight, type_of(x), peak_of)
    return result


class _Grid(torch.autograd.Function):
    """Rounds the rows of a matrix to int8; the gradient passes as it is (Bengio, 1308.3432)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.kind = rows.dtype
        peak = rows.detach().float().abs().amax(dim=-1, keepdim=True)
        scale = torch.where(peak == 0, torch.ones_like(peak), (peak / 127).clamp(min=SMALLEST))
        return (rows.float() / scale).round().clamp(-127, 127) * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].to(ctx.kind)


def on_int8_grid(rows: Tensor) -> Tensor:
    """Return rows rounded to int8, a scale for each; the gradient passes as it is."""
    rounded: Any = _Grid.apply
    result: Tensor = rounded(rows)
    return result


def int8_product(x: Tensor, weight: Tensor) -> Tensor:
    """Return `x @ weight.T` on int8 grids: a scale for each token and each output."""
    kind = type_of(x)
    with torch.autocast(x.device.type, enabled=False):
        product = on_int8_grid(x) @ on_int8_grid(weight).t()
    return product.to(kind)
