"""Time and memory of the loss of a large vocabulary: full logits, TRL's tiles, our chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from benchmarks.children import peak_growth
from benchmarks.frame import Figures, Plan, Row, Sides, Subject, Work, at_least, at_most, interleave

if TYPE_CHECKING:
    import torch

MASKED = 0.6
"""Share of the labels that are not scored, as the prompts of chats are not."""


def measure(plan: Plan) -> Sides:
    """Compute the same loss and its gradients in every way."""
    import torch
    from torch.nn import functional as F
    from trl.kernels import ChunkedLogProbFunction

    from mudpuppy.chunked_loss import chunked_cross_entropy

    tokens, vocabulary, width = plan.pick(full=(2048, 32_768, 256), quick=(512, 16_384, 128))
    plan.facts["tokens"] = f"{tokens}, {MASKED:.0%} of them masked"
    plan.facts["vocabulary"] = vocabulary
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, requires_grad=True)
    weight = (torch.randn(vocabulary, width) * 0.05).requires_grad_()
    labels = torch.randint(vocabulary, (tokens,))
    labels[torch.rand(tokens) < MASKED] = -100

    def full() -> torch.Tensor:
        return F.cross_entropy(F.linear(hidden, weight), labels, reduction="sum")

    def trl() -> torch.Tensor:
        scored = ChunkedLogProbFunction.apply(
            *(hidden, weight, None, labels.clamp(min=0), 1.0, 32_768, None, 1.0),
            ("entropy", "is_top1"),
        )
        scores: torch.Tensor = scored[0]
        return -scores.masked_fill(labels == -100, 0.0).sum()

    def chunked() -> torch.Tensor:
        return chunked_cross_entropy(hidden, weight, labels)

    with torch.no_grad():
        reference = float(full())

    def step(loss: Callable[[], torch.Tensor]) -> Work:
        def work() -> Figures:
            hidden.grad = None
            weight.grad = torch.zeros_like(weight)  # as it is after the first batch
            value: list[float] = []

            def both_ways() -> None:
                total = loss()
                torch.autograd.backward(total)
                value.append(float(total.detach()))

            peak = peak_growth(both_ways)
            return {"peak_mb": peak / 1e6, "off": abs(value[0] - reference) / reference}

        return work

    return interleave(plan, {"full logits": step(full), "TRL": step(trl), "chunked": step(chunked)})


SUBJECT = Subject(
    name="loss",
    title="Loss of a large vocabulary, forward + backward",
    measure=measure,
    rows=(
        Row(
            name="speed",
            what="loss in chunks of tokens",
            ours="chunked",
            against="full logits",
            goal=at_least(2.0),
        ),
        Row(
            name="speed-trl",
            what="loss in chunks of tokens",
            ours="chunked",
            against="TRL",
            goal=at_least(1.0),
        ),
        Row(
            name="memory",
            what="the same, peak memory",
            ours="chunked",
            against="full logits",
            figure="peak_mb",
            goal=at_most(0.25),
            margin=2.0,
        ),
        Row(
            name="equal",
            what="the same, relative difference of the loss",
            ours="chunked",
            against=None,
            figure="off",
            goal=at_most(1e-5),
            margin=10.0,
        ),
    ),
)
