"""Int8 linear layers on the CPU: as they answer, and as they train, beside plain ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.frame import Plan, Row, Sides, Subject, Work, at_most, interleave

if TYPE_CHECKING:
    import torch


def measure(plan: Plan) -> Sides:
    """Compute the same layer in every way, forward alone and forward with backward."""
    import torch
    from torch import nn

    from mudpuppy.quant.fake_quant import FakeQuantLinear
    from mudpuppy.quant.int8 import Int8Linear
    from mudpuppy.quant.int_sums import can_multiply_int8
    from mudpuppy.quant.ranges import LayerRanges, RangeSettings

    tokens, inner, outer = plan.pick(full=(512, 2048, 2048), quick=(128, 512, 512))
    plan.facts["shape"] = f"{outer} x {inner}, {tokens} tokens"
    plan.facts["int8 units"] = "used" if can_multiply_int8("cpu") else "not there, or wrong"
    torch.manual_seed(0)
    plain = nn.Linear(inner, outer, bias=False)
    x = torch.randn(tokens, inner)
    int8, half, half_x = Int8Linear.from_linear(plain), _copy(plain).bfloat16(), x.bfloat16()

    def forward(layer: nn.Module, given: torch.Tensor) -> Work:
        def work() -> None:
            with torch.no_grad():
                layer(given)

        return work

    def training(layer: nn.Linear) -> Work:
        given = x.clone().requires_grad_()

        def work() -> None:
            layer.weight.grad = given.grad = None
            layer(given).sum().backward()

        return work

    dynamic, learned = _copy(plain), _copy(plain)
    settings = RangeSettings(per_tensor=True, learned=True)
    learned.add_module("ranges", LayerRanges(learned, settings))
    dynamic.__class__ = learned.__class__ = FakeQuantLinear
    return interleave(
        plan,
        {
            "int8": forward(int8, x),
            "fp32": forward(plain, x),
            "bf16": forward(half, half_x),
            "int8, bf16 inputs": forward(int8, half_x),
            "fp32 step": training(plain),
            "QAT step": training(dynamic),
            "QAT step, learned": training(learned),
        },
    )


def _copy(layer: torch.nn.Linear) -> torch.nn.Linear:
    import copy

    return copy.deepcopy(layer)


SUBJECT = Subject(
    name="int8",
    title="Int8 linear layer on the CPU",
    measure=measure,
    rows=(
        Row(
            name="int8-vs-fp32",
            what="int8 linear, forward, inputs rounded as they come",
            ours="int8",
            against="fp32",
            goal=at_most(0.5),
        ),
        Row(
            name="int8-vs-bf16",
            what="the same with bf16 inputs",
            ours="int8, bf16 inputs",
            against="bf16",
            goal=None,
        ),
        Row(
            name="qat-vs-fp32",
            what="QAT linear, forward + backward",
            ours="QAT step",
            against="fp32 step",
            goal=at_most(1.5),
        ),
        Row(
            name="qat-learned-vs-fp32",
            what="the same with static, learned ranges (LSQ)",
            ours="QAT step, learned",
            against="fp32 step",
            goal=at_most(2.0),
        ),
    ),
)
