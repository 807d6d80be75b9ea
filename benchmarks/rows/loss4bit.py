"""The loss that QLoRA reaches on the embedded model, against LoRA on the 16-bit base.

Same samples in the same order, same seed; the mean loss of the last steps counts.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from benchmarks.frame import Figures, Plan, Row, Sides, Subject, at_most

LAST = 10
"""Steps at the end whose loss is averaged."""


def train_once(plan: Plan, dataset: Path, method: str, steps: int) -> Figures:
    """Train and return the mean loss of the first steps and of the last."""
    from mudpuppy.config_check import load_config
    from mudpuppy.engine import train

    losses: list[float] = []
    name, _, quant = method.partition(" ")
    given = {
        "model": "tiny",
        "dataset": dataset,
        "output": plan.folder / method.replace(" ", "-"),
        "method": name,
        "precision": "bf16",
        "device": "cpu",
        "max_length": 128,
        "max_steps": steps,
        "batch_size": 8,
        "learning_rate": 1e-3,
        **({"quant": quant} if quant else {}),
    }
    train(load_config(given), report=lambda step, _: losses.append(float(step.loss or 0.0)))
    plan.say(f"  {method:<12} {losses[0]:.4f} to {statistics.mean(losses[-LAST:]):.4f}")
    return {"loss": statistics.mean(losses[-LAST:]), "first": losses[0]}


def measure(plan: Plan) -> Sides:
    """Train in every way."""
    from benchmarks.models import write_chats

    steps = plan.pick(full=60, quick=12)
    dataset = write_chats(plan.folder / "chats.jsonl", 16, 24)
    plan.facts["run"] = f"{steps} steps of 8 samples, the embedded model, mean of the last {LAST}"
    sides = ("lora", "qlora nf4", "qlora int4", "qlora mxfp4")
    return {name: [train_once(plan, dataset, name, steps)] for name in sides}


SUBJECT = Subject(
    name="loss4bit",
    title="QLoRA: final loss",
    measure=measure,
    rows=tuple(
        Row(
            name=side.replace(" ", "-"),
            what=f"{side}: final loss",
            ours=side,
            against="lora",
            figure="loss",
            goal=at_most(1.02),
        )
        for side in ("qlora nf4", "qlora int4", "qlora mxfp4")
    ),
)
