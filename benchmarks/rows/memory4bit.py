"""Peak memory of a QLoRA step against a LoRA step on a bf16 base: the engine, in fresh processes.

A random Llama in which weights dominate: adapter, optimizer and activations are the same over both
bases, so few tokens and a small rank leave little beside the weights. Counted is what the process
holds from the first step to the last, over what it held after the same run on a little model:
libraries, compiled kernels and the heap of whatever is used once are no part of a step.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.children import call
from benchmarks.frame import Figures, NotRun, Plan, Row, Sides, Subject, Work, at_most, interleave

if TYPE_CHECKING:
    from benchmarks.models import Scales

TOKENS = 64
RANK = 8
"""Of the adapters."""
OURS = ("qlora nf4", "qlora int4", "qlora mxfp4")


def import_engine() -> None:
    """Import the engine, and what it imports at its first use."""
    import mudpuppy.config_check
    import mudpuppy.engine
    import mudpuppy.estimate.layout
    import mudpuppy.methods.trainers  # noqa: F401


def train_once(folder: str, method: str, output: str) -> Figures:
    """Take two steps and return the peak of what was held, and what was predicted."""
    from benchmarks.children import release_memory
    from benchmarks.models import Scales

    _train(folder, "little", method, f"{output}-little", Scales())
    release_memory()
    scales = Scales()
    predicted = _train(folder, "model", method, output, scales)
    return {"held_mb": scales.peak / 1e6, "predicted_mb": predicted / 1e6}


def _train(folder: str, model: str, method: str, output: str, scales: Scales) -> int:
    """Take two steps and return the bytes that were predicted."""
    from mudpuppy.config_check import load_config
    from mudpuppy.engine import train

    name, _, quant = method.partition(" ")
    given = {
        "model": str(Path(folder) / model),
        "dataset": Path(folder) / "chats.jsonl",
        "output": Path(folder) / output,
        "method": name,
        "precision": "bf16",
        "device": "cpu",
        "max_length": TOKENS,
        "max_steps": 2,
        "batch_size": 1,
        "lora_r": RANK,
        **({"quant": quant} if quant else {}),
    }
    record = train(load_config(given), watcher=scales)
    return sum(record.predicted_bytes.values())


def measure(plan: Plan) -> Sides:
    """Train in every way, in turn."""
    from benchmarks.models import Shape, build_model, write_chats

    shape = plan.pick(
        full=Shape(width=2048, layers=12, heads=16), quick=Shape(width=1536, layers=6, heads=12)
    )
    build_model(plan.folder / "little", Shape(width=64, layers=1, heads=2), "bf16")
    build_model(plan.folder / "model", shape, "bf16")
    write_chats(plan.folder / "chats.jsonl", 4, TOKENS)
    plan.facts["model"] = (
        f"{shape.parameters / 1e6:.0f} M weights, {TOKENS} tokens a step, rank {RANK}"
    )
    plan.rounds = min(plan.rounds, plan.pick(full=2, quick=1))
    count = iter(range(100))

    def child(method: str) -> Work:
        return lambda: call(
            *("benchmarks.rows.memory4bit:train_once", str(plan.folder), method),
            f"out{next(count)}",
            prepare="import_engine",
        )

    sides = ("lora", *OURS)
    left = NotRun("a full run measures it")
    works = {name: left if plan.is_quick and name in OURS[1:] else child(name) for name in sides}
    return interleave(plan, works, is_warmed=False)


SUBJECT = Subject(
    name="memory4bit",
    title="QLoRA: peak memory of a step",
    measure=measure,
    rows=(
        *(
            Row(
                name=side.replace(" ", "-"),
                what=f"{side}, peak of a step",
                ours=side,
                against="lora",
                figure="held_mb",
                goal=at_most(0.4),
                margin=1.25,
            )
            for side in OURS
        ),
    ),
)
