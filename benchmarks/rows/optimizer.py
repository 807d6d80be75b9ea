"""AdamW on the host: one step of 48 million parameters in 542 tensors, flattened or not.

The sides step tensors of the same shapes with the same settings: torch's loop over groups of
tensors (foreach), torch's fused kernel called with every tensor, the optimizer of `--stream`, whose
layers step in two calls each, and that of `--zero-offload`, which copies gradients over and weights
back besides, on a CPU as on a GPU.
"""

from __future__ import annotations

from typing import Any

from benchmarks.frame import Plan, Row, Sides, Subject, at_least, interleave
from benchmarks.models import Shape


def measure(plan: Plan) -> Sides:
    """Time one step of each optimizer."""
    import torch

    from mudpuppy.memory.offload import OffloadedAdamW, StreamedAdamW
    from mudpuppy.memory.streaming import stream_layers

    shape = plan.pick(
        full=Shape(width=256, layers=60, heads=4, vocabulary=512),
        quick=Shape(width=128, layers=24, heads=4, vocabulary=512),
    )
    plan.facts["parameters"] = shape.parameters
    models = {name: _make(shape) for name in ("foreach", "fused", "streamed", "offloaded")}
    plan.facts["tensors"] = len(list(models["fused"].parameters()))
    stream = stream_layers(models["streamed"], "cpu")
    plain = {
        name: torch.optim.AdamW(
            model.parameters(),
            lr=1e-3,
            weight_decay=0.1,
            foreach=name == "foreach",
            fused=name != "foreach",
        )
        for name, model in models.items()
    }
    steps: dict[str, Any] = {
        "foreach": plain["foreach"],
        "fused": plain["fused"],
        "streamed": StreamedAdamW(plain["streamed"], stream),
        "offloaded": OffloadedAdamW(plain["offloaded"]),
    }
    for flat in stream.flats:
        for name, parameter in flat.trained.items():
            parameter.grad = flat.slope_of(name).fill_(1e-3)  # where backward would put it
    for model in models.values():
        for parameter in model.parameters():
            if parameter.grad is None:
                parameter.grad = torch.full_like(parameter, 1e-3)
    sides = interleave(plan, {name: one.step for name, one in steps.items()})
    stream.remove()
    return sides


def _make(shape: Shape) -> Any:
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(shape.settings())


SUBJECT = Subject(
    name="optimizer",
    title="AdamW on the host, one step",
    measure=measure,
    rows=(
        Row(
            name="flat-vs-foreach",
            what="a step of streamed layers",
            ours="streamed",
            against="foreach",
            goal=at_least(4.0),
        ),
        Row(
            name="flat-vs-fused",
            what="the same, against the fused kernel called with every tensor",
            ours="streamed",
            against="fused",
            goal=None,
        ),
        Row(
            name="offload-vs-foreach",
            what="a step of --zero-offload, copies of gradients and weights included",
            ours="offloaded",
            against="foreach",
            goal=None,
        ),
    ),
)
