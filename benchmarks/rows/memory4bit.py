"""Peak memory of a QLoRA step against a LoRA step on a bf16 base: the engine, in fresh processes.

A random Llama in which weights dominate. Counted is what the process holds from the first step to
the last, over what it held after its imports.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.children import call
from benchmarks.frame import Figures, NotRun, Plan, Row, Sides, Subject, Work, at_most, interleave

TOKENS = 128
OURS = ("qlora nf4", "qlora int4", "qlora mxfp4")


def import_engine() -> None:
    """Import the engine, and what it imports at its first use."""
    import mudpuppy.config_check
    import mudpuppy.engine
    import mudpuppy.estimate.layout
    import mudpuppy.methods.trainers  # noqa: F401


def train_once(folder: str, method: str, output: str) -> Figures:
    """Take two steps and return the peak of what was held, and what was predicted."""
    from benchmarks.models import Scales
    from mudpuppy.config_check import load_config
    from mudpuppy.engine import train

    scales = Scales()
    name, _, quant = method.partition(" ")
    given = {
        "model": str(Path(folder) / "model"),
        "dataset": Path(folder) / "chats.jsonl",
        "output": Path(folder) / output,
        "method": name,
        "precision": "bf16",
        "device": "cpu",
        "max_length": TOKENS,
        "max_steps": 2,
        "batch_size": 1,
        **({"quant": quant} if quant else {}),
    }
    record = train(load_config(given), watcher=scales)
    predicted = sum(record.predicted_bytes.values())
    return {"held_mb": scales.peak / 1e6, "predicted_mb": predicted / 1e6}


def measure(plan: Plan) -> Sides:
    """Train in every way, in turn."""
    from benchmarks.models import Shape, build_model, write_chats

    shape = plan.pick(
        full=Shape(width=1536, layers=12, heads=12), quick=Shape(width=1024, layers=6, heads=16)
    )
    build_model(plan.folder / "model", shape, "bf16")
    write_chats(plan.folder / "chats.jsonl", 4, TOKENS)
    plan.facts["model"] = f"{shape.parameters / 1e6:.0f} M weights, {TOKENS} tokens a step"
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
