"""A 4-bit linear layer, forward and backward to its input: the inner loop of QLoRA.

In pure PyTorch; what the compiled kernel does is another subject. `row-wise` is what one writes
first: one scale a row, and the whole matrix made dense for every product.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.frame import Plan, Row, Sides, Subject, Work, at_least, at_most, interleave, needs

if TYPE_CHECKING:
    import torch
    from torch import nn

FORMATS = ("nf4", "int4", "mxfp4")


def measure(plan: Plan) -> Sides:
    """Time every layer on the same input and slope, in bf16."""
    os.environ["MUDPUPPY_KERNELS"] = "0"  # the pure PyTorch path
    import torch

    out, columns, tokens = plan.pick(full=(11_008, 4096, 512), quick=(2816, 1024, 256))
    plan.facts["product"] = f"{columns} x {out}, {tokens} tokens, bf16"
    random = torch.Generator().manual_seed(0)
    dense = torch.nn.Linear(columns, out, bias=False, dtype=torch.bfloat16)
    dense.weight.data.copy_(torch.randn(out, columns, generator=random) * 0.02)
    dense.requires_grad_(False)
    x = torch.randn(tokens, columns, generator=random).to(torch.bfloat16).requires_grad_()
    slope = torch.randn(tokens, out, generator=random).to(torch.bfloat16)

    def both_ways(layer: nn.Module) -> None:
        x.grad = None
        layer(x).backward(slope)

    sides: dict[str, Any] = {
        "bf16 Linear": partial(both_ways, dense),
        "row-wise int4": partial(both_ways, row_wise(dense.weight)),
        "bitsandbytes": needs("bitsandbytes") or partial(both_ways, _theirs(dense)),
    }
    sides |= {name: _ours(name, dense, both_ways) for name in FORMATS}
    return interleave(plan, sides)


def _ours(name: str, dense: nn.Linear, both_ways: Any) -> Work:
    from mudpuppy.quant.formats import FORMATS as OWN
    from mudpuppy.quant.linear4bit import Linear4bit

    return partial(both_ways, Linear4bit.from_linear(dense, OWN[name]))


def _theirs(dense: nn.Linear) -> nn.Module:
    import torch
    from bitsandbytes.nn import Linear4bit, Params4bit

    layer = Linear4bit(
        dense.in_features,
        dense.out_features,
        bias=False,
        compute_dtype=torch.bfloat16,
        quant_type="nf4",
    )
    layer.weight = Params4bit(dense.weight.data.clone(), requires_grad=False, quant_type="nf4")
    made: nn.Module = layer.to("cpu")
    return made


def row_wise(weight: torch.Tensor) -> nn.Module:
    """Return the plain int4 layer: absmax / 7 of each row, dense again for every product."""
    import torch
    from torch.nn import functional as F

    scales = weight.float().abs().amax(1, keepdim=True) / 7
    levels = (weight.float() / scales).round().clamp(-7, 7).to(torch.int8) + 8
    packed = levels[:, 0::2].to(torch.uint8) | (levels[:, 1::2].to(torch.uint8) << 4)

    def make_dense(dtype: torch.dtype) -> torch.Tensor:
        pairs = torch.stack((packed & 15, packed >> 4), dim=-1).view(weight.shape)
        return ((pairs.to(torch.float32) - 8) * scales).to(dtype)

    class Product(torch.autograd.Function):
        """The product; nothing dense is kept."""

        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            """Return x W^T."""
            return F.linear(x, make_dense(x.dtype))

        @staticmethod
        def backward(ctx: Any, *slopes: torch.Tensor) -> torch.Tensor:
            """Return slope W."""
            return slopes[0] @ make_dense(slopes[0].dtype)

    class RowWise(torch.nn.Module):
        """The layer."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Return x W^T."""
            product: torch.Tensor = Product.apply(x)  # type: ignore[no-untyped-call]
            return product

    return RowWise()


SUBJECT = Subject(
    name="linear4bit",
    title="QLoRA linear in pure PyTorch, forward + backward to the input",
    measure=measure,
    rows=(
        Row(
            name="nf4-vs-bf16",
            what="nf4 linear",
            ours="nf4",
            against="bf16 Linear",
            goal=at_most(2.2),
        ),
        Row(
            name="nf4-vs-bitsandbytes",
            what="nf4 linear",
            ours="nf4",
            against="bitsandbytes",
            goal=at_least(1.1),
        ),
        Row(
            name="nf4-vs-row-wise",
            what="nf4 linear",
            ours="nf4",
            against="row-wise int4",
            goal=at_least(3.0),
        ),
        *(
            Row(
                name=f"{name}-vs-bf16",
                what=f"{name} linear",
                ours=name,
                against="bf16 Linear",
                goal=None,
            )
            for name in FORMATS[1:]
        ),
    ),
)
