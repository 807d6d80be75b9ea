"""Layer streaming against resident training: what the device holds, what moves, what it costs.

A step of full fine-tuning in fp32, with clipping. The device is counted tensor by tensor
(`mudpuppy.memory.meter`), the same way on both sides. No GPU is measured here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.fit import fit_power
from benchmarks.frame import Figures, Plan, Row, Sides, Subject, at_most, interleave
from benchmarks.models import Shape

LAYERS = 24
DEPTHS = (6, 12, 24)
"""Numbers of layers that the growth of time is fitted to."""


def measure(plan: Plan) -> Sides:
    """Train the same model both ways."""
    width, tokens = plan.pick(full=(256, 64), quick=(64, 16))
    plan.facts |= {"layers": LAYERS, "width": width, "tokens": tokens}
    resident = Training(_shape(width, LAYERS), tokens, is_streamed=False)
    streamed = Training(_shape(width, LAYERS), tokens, is_streamed=True)
    kept, moved = resident.count(), streamed.count()
    moved["differing"] = resident.compare(streamed)
    moved["exponent"] = _exponent(plan, width, tokens)

    def step(training: Training, figures: Figures) -> Callable[[], Figures]:
        def work() -> Figures:
            training.step()
            return figures

        return work

    sides = interleave(plan, {"resident": step(resident, kept), "streamed": step(streamed, moved)})
    streamed.close()
    return sides


def _shape(width: int, layers: int) -> Shape:
    return Shape(width=width, layers=layers, heads=4, vocabulary=512)


def _exponent(plan: Plan, width: int, tokens: int) -> float:
    """Return the power of the number of layers with which the time of a streamed step grows."""
    import time

    costs = []
    for depth in DEPTHS:
        training = Training(_shape(width, depth), tokens, is_streamed=True)
        training.step()
        taken = []
        for _ in range(plan.rounds):
            started = time.process_time()
            training.step()
            taken.append(time.process_time() - started)
        costs.append(min(taken))
        training.close()
    plan.facts["seconds of a step by layers"] = {
        str(depth): round(cost, 4) for depth, cost in zip(DEPTHS, costs, strict=True)
    }
    return fit_power(DEPTHS, costs).exponent


class Training:
    """A model that is trained step by step."""

    def __init__(self, shape: Shape, tokens: int, *, is_streamed: bool) -> None:
        import torch
        from transformers import LlamaForCausalLM

        from mudpuppy.memory.meter import CountedArena
        from mudpuppy.memory.offload import StreamedAdamW
        from mudpuppy.memory.streaming import stream_layers

        torch.manual_seed(0)
        self.model: Any = LlamaForCausalLM(shape.settings()).train()
        self.arena = CountedArena()
        self.stream = stream_layers(self.model, "cpu", arena=self.arena) if is_streamed else None
        plain = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.optimizer: Any = plain if self.stream is None else StreamedAdamW(plain, self.stream)
        self.ids = torch.randint(0, shape.vocabulary, (2, tokens))

    def step(self) -> None:
        """Do one step, whole."""
        import torch

        self.model(self.ids, labels=self.ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def count(self) -> Figures:
        """Return what two steps keep on the device, and what one of them moves."""
        with self.arena.meter as meter:
            meter.count_model(self.model)
            self.step()
            self.step()
        figures = {"peak_bytes": float(meter.peak)}
        if self.stream is not None:
            ledger, beside = self.stream.ledger, self.optimizer.ledger
            weights = 2 * sum(flat.size for flat in self.stream.flats)  # of two steps
            gradients = ledger.gradient_bytes + beside.gradient_bytes
            figures |= {
                "brought": (self.arena.inward - beside.weight_bytes) / weights,
                "returned_bytes": float(self.arena.outward - gradients),
                "layers_held": float(ledger.peak_layers),
            }
        return figures

    def compare(self, other: Training) -> float:
        """Return how many weights differ in a bit after the same steps."""
        pairs = zip(self.model.parameters(), other.model.parameters(), strict=True)
        return float(sum(int((a != b).sum()) for a, b in pairs))

    def close(self) -> None:
        """End the streaming."""
        if self.stream is not None:
            self.stream.remove()


SUBJECT = Subject(
    name="streaming",
    title="Layer streaming, a step of full fine-tuning",
    measure=measure,
    rows=(
        Row(
            name="memory",
            what="high-water mark of the device, 24 layers",
            ours="streamed",
            against="resident",
            figure="peak_bytes",
            goal=at_most(0.25),
        ),
        Row(
            name="traffic",
            what="bytes to the device, in weights of the layers a step",
            ours="streamed",
            against=None,
            figure="brought",
            goal=at_most(2.0),
        ),
        Row(
            name="returned",
            what="bytes of weights copied back",
            ours="streamed",
            against=None,
            figure="returned_bytes",
            goal=at_most(0),
        ),
        Row(
            name="equal",
            what="weights that differ in a bit after two steps",
            ours="streamed",
            against=None,
            figure="differing",
            goal=at_most(0),
        ),
        Row(
            name="linear",
            what="power of the number of layers with which time grows",
            ours="streamed",
            against=None,
            figure="exponent",
            goal=at_most(1.1),
            margin=1.3,
        ),
        Row(
            name="time",
            what="processor time of a step on a CPU, where nothing overlaps",
            ours="streamed",
            against="resident",
            goal=None,
        ),
    ),
)
