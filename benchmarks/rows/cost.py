"""Cost against size: time and memory of training steps by layers, weights and tokens.

Every point is a run of the engine in a fork of one warm process, so that memory starts from the
same place. Beside what was held stands what `mud-puppy estimate` predicts. A fixed cost makes an
exponent smaller; one above 1 would say that something grows faster than its size.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.frame import Figures, Plan, Row, Sides, Subject, at_most

if TYPE_CHECKING:
    from benchmarks.models import Shape

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "precision": "bf16"},
    "qlora": {"method": "qlora", "precision": "bf16"},
    "full": {"method": "full", "precision": "bf16"},
    "stream": {"method": "full", "precision": "bf16", "stream": True},
}
AXES = {"layers": (4, 8, 16, 24), "width": (256, 384, 576, 864), "tokens": (128, 256, 512, 1024)}
"""Sizes along each axis; the weights grow with the square of the width."""
WIDTH, LAYERS, TOKENS = 384, 4, 256
"""Where the other two axes stand meanwhile."""
STEPS = 2
EXPONENT = 1.15
"""Largest exponent that still counts as linear: memory comes in pages, time with neighbours."""
TOKENS_EXPONENT = 1.35
"""The same for tokens, whose attention grows with their square."""
OFF = 0.15
"""Share by which a prediction may be off, typically."""


def points(count: int) -> Iterator[tuple[str, int, int, int]]:
    """Yield axis, width, layers and tokens of every model, `count` along each axis."""
    for axis, sizes in AXES.items():
        for size in sizes[:count]:
            width = size if axis == "width" else WIDTH
            layers = size if axis == "layers" else LAYERS
            yield axis, width, layers, size if axis == "tokens" else TOKENS


def train_once(folder: Path, shape: Shape, method: str, tokens: int, output: Path) -> Figures:
    """Take some steps and return their time, what was held, and what was predicted."""
    from benchmarks.models import Scales
    from mudpuppy.config_check import load_config
    from mudpuppy.engine import train

    scales = Scales()
    given = {
        "model": str(folder / "model"),
        "dataset": folder / "chats.jsonl",
        "output": output,
        "device": "cpu",
        "max_length": tokens,
        "max_steps": STEPS,
        "batch_size": 1,
        "packing": True,
        **METHODS[method],
    }
    record = train(load_config(given), watcher=scales)
    predicted = sum(record.predicted_bytes.values())
    return {
        "wall_s": scales.wall_s / STEPS,
        "cpu_s": scales.cpu_s / STEPS,
        "held_mb": scales.peak / 1e6,
        "predicted_mb": predicted / 1e6,
        "weights": float(shape.parameters),
    }


def _in_fork(*arguments: Any) -> Figures:
    """Run in a fork of this process, which has imported everything.

    Raises:
        RuntimeError: it failed.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(sender, *arguments))
    child.start()
    sender.close()
    try:
        found: Figures = receiver.recv()
    except EOFError as error:
        raise RuntimeError("a run of the engine failed, see above") from error
    finally:
        child.join()
    return found


def _send(sender: Any, *arguments: Any) -> None:
    sender.send(train_once(*arguments))


def _warm_up(folder: Path) -> None:
    """Train something small in this process: whatever is imported or made once is there then."""
    from benchmarks.models import Shape, build_model, write_chats

    place = folder / "warm-up"
    place.mkdir()
    shape = Shape(width=64, layers=2, heads=2)
    build_model(place / "model", shape)
    write_chats(place / "chats.jsonl", 4, 32)
    for method in METHODS:
        train_once(place, shape, method, 32, place / method)


def measure(plan: Plan) -> Sides:
    """Train every size in every way, then fit."""
    from benchmarks.models import Shape, build_model, write_chats

    _warm_up(plan.folder)
    plan.facts["base"] = f"Llama, width {WIDTH}, {LAYERS} layers, {TOKENS} tokens a step, bf16"
    count = 2 if plan.is_quick else 3 if plan.rounds == 1 else 4
    sides: Sides = {}
    known: dict[tuple[Any, ...], Figures] = {}  # where the axes meet
    for axis, width, layers, tokens in points(count):
        shape = Shape(width=width, layers=layers, heads=width // 32)
        folder = plan.folder / f"{axis}-{width}-{layers}-{tokens}"
        folder.mkdir()
        build_model(folder / "model", shape)
        write_chats(folder / "chats.jsonl", 16, tokens, sigma=0.8)
        size = {"layers": layers, "width": width, "tokens": tokens}[axis]
        for method in METHODS:
            place = (width, layers, tokens, method)
            if place not in known:
                known[place] = _best(plan, folder, shape, method, tokens)
            best = known[place]
            sides[f"{axis} {size}: {method}"] = [best]
            shown = "  ".join(f"{key} {value:.4g}" for key, value in best.items())
            plan.say(f"  {axis} {size:<5} {method:<7} {shown}")
    return {**sides, **fitted(sides)}


def _best(plan: Plan, folder: Path, shape: Shape, method: str, tokens: int) -> Figures:
    """Train twice, or once if only one round is wanted, and return what was disturbed least."""
    runs = [
        _in_fork(folder, shape, method, tokens, folder / f"{method}{number}")
        for number in range(min(plan.rounds, plan.pick(full=2, quick=1)))
    ]
    best = min(runs, key=lambda run: run["cpu_s"])
    return {**best, "held_mb": min(run["held_mb"] for run in runs)}


def fitted(sides: Sides) -> Sides:
    """Return the exponents by axis and method, and by how much predictions are off."""
    from benchmarks.fit import fit_power

    found: Sides = {}
    for method in METHODS:
        distances = []
        for axis in AXES:
            samples = curve(sides, axis, method)
            sizes = [size for size, _ in samples]
            found[f"{axis}: {method}"] = [
                {
                    "time": fit_power(sizes, [one["cpu_s"] for _, one in samples]).exponent,
                    "memory": fit_power(sizes, [one["held_mb"] for _, one in samples]).exponent,
                }
            ]
            distances += [abs(one["predicted_mb"] / one["held_mb"] - 1) for _, one in samples]
        found[f"prediction: {method}"] = [{"off": one} for one in distances]
    return found


def curve(sides: Sides, axis: str, method: str) -> list[tuple[float, Figures]]:
    """Return the points of one curve; along the width, by the number of weights."""
    found = []
    for name, samples in sides.items():
        head, _, tail = name.partition(": ")
        kind, _, size = head.partition(" ")
        if (kind, tail) != (axis, method) or not size or not isinstance(samples, list):
            continue
        (one,) = samples
        found.append((one["weights"] if axis == "width" else float(size), one))
    return found


def _exponent(axis: str, method: str, figure: str) -> Row:
    by = "weights" if axis == "width" else axis
    return Row(
        name=f"{figure}-{axis}-{method}",
        what=f"{method}: {figure} of a step by {by}, exponent",
        ours=f"{axis}: {method}",
        against=None,
        figure=figure,
        goal=at_most(TOKENS_EXPONENT if axis == "tokens" else EXPONENT),
    )


SUBJECT = Subject(
    name="cost",
    title="Cost against size",
    measure=measure,
    in_quick=False,
    minutes=15,
    rows=(
        *(
            _exponent(axis, method, figure)
            for figure in ("time", "memory")
            for axis in AXES
            for method in METHODS
        ),
        *(
            Row(
                name=f"prediction-{method}",
                what=f"{method}: mud-puppy estimate off by (share, median of all sizes)",
                ours=f"prediction: {method}",
                against=None,
                figure="off",
                goal=at_most(OFF),
            )
            for method in METHODS
        ),
    ),
)
