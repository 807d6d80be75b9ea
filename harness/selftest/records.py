"""Write the records of training runs as transformers does, with numbers as real runs have them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Course = Callable[[float], float]
"""A number by the finished share of the run, 0 to 1."""
PEAK = 2e-4
"""Learning rate of the records."""


def sink(begin: float, end: float, speed: float = 4.0) -> Course:
    """Return an exponential course from `begin` towards `end`."""
    return lambda done: end + (begin - end) * math.exp(-speed * done)


def warm_cosine(done: float) -> float:
    """Return a cosine schedule with a warmup of a tenth."""
    if done < 0.1:
        return PEAK * done / 0.1
    return PEAK * 0.5 * (1 + math.cos(math.pi * (done - 0.1) / 0.9))


def write_state(
    folder: Path,
    courses: Mapping[str, Course],
    *,
    steps: int = 400,
    every: int = 10,
    epochs: float = 3.0,
    noise: float = 0.04,
    evaluations: Mapping[int, float] | None = None,
    **further: Any,
) -> dict[str, Any]:
    """Write `trainer_state.json` and return its content.

    Args:
        folder: where.
        courses: loss, grad_norm and what else is logged; a learning rate is added.
        steps: optimizer steps of the run.
        every: logging_steps.
        epochs: epochs of the run.
        noise: relative deviation of every number but the learning rate.
        evaluations: evaluation loss by step.
        further: further keys of the state, or others in place of the usual ones.
    """
    chance = random.Random(json.dumps(sorted(courses)) + str(steps))
    history: list[dict[str, Any]] = []
    for step in range(every, steps + 1, every):
        done = step / steps
        row: dict[str, Any] = {"epoch": round(epochs * done, 4), "step": step}
        row["learning_rate"] = warm_cosine(done)
        for name, course in courses.items():
            row[name] = _spread(course(done), noise, chance, exact=name == "learning_rate")
        history.append(row)
        if evaluations and step in evaluations:
            judged = {"eval_loss": evaluations[step], "eval_runtime": 3.1, "step": step}
            history.append({"epoch": row["epoch"], **judged})
    value = {
        "best_global_step": None,
        "best_metric": None,
        "best_model_checkpoint": None,
        "epoch": epochs,
        "eval_steps": 500,
        "global_step": steps,
        "is_hyper_param_search": False,
        "is_local_process_zero": True,
        "is_world_process_zero": True,
        "log_history": history,
        "logging_steps": every,
        "max_steps": steps,
        "num_input_tokens_seen": 0,
        "num_train_epochs": math.ceil(epochs),
        "save_steps": 500,
        "stateful_callbacks": {},
        "total_flos": 1.2e15,
        "train_batch_size": 2,
        "trial_name": None,
        "trial_params": None,
        **further,
    }
    (folder / "trainer_state.json").write_text(json.dumps(value, indent=2), encoding="utf-8")
    return value


def _spread(value: float, noise: float, chance: random.Random, *, exact: bool) -> float:
    return value if exact else value * (1 + noise * chance.gauss(0, 1))


def edit_history(folder: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """Change the rows of trainer_state.json that hold a loss, in place."""
    path = folder / "trainer_state.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    change([row for row in value["log_history"] if "loss" in row])
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def set_course(folder: Path, name: str, course: Course, noise: float = 0.03) -> None:
    """Put another course into one series of trainer_state.json."""
    chance = random.Random(name)

    def change(rows: Sequence[dict[str, Any]]) -> None:
        for number, row in enumerate(rows, start=1):
            exact = name == "learning_rate"
            row[name] = _spread(course(number / len(rows)), noise, chance, exact=exact)

    edit_history(folder, change)


def edit_state(folder: Path, **changes: Any) -> None:
    """Set keys of trainer_state.json."""
    path = folder / "trainer_state.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**value, **changes}, indent=2), encoding="utf-8")
