"""The twin's phases in a training cell: the replay, and a run that is killed and taken up again."""

from __future__ import annotations

import json
import os
import signal
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.observations_twin import Deviation, TwinFacts
from harness.phases import PhaseEnded, run_phase
from harness.trials.order import CHECKPOINT, Order
from harness.twin.asked import Asked
from harness.twin.result import RECORDING_FILE, read_twin
from mudpuppy.config import TrainingConfig
from mudpuppy.files import write_json_atomic
from mudpuppy.tiny import resolve_model

SECOND_RUN = "resumed"
"""Folder of the run that is killed and resumed, inside the folder of the cell."""
STEPS_FILE = "taken.json"
"""Steps that the resumed run took, in its folder."""
LOGGED = ("step", "loss", "grad_norm", "learning_rate", "eval_loss")
"""Numbers of the step log that must be the same, bit for bit."""


def is_replayed(config: TrainingConfig) -> bool:
    """Whether a run has a twin: GPTQ trains nothing, and sharded tensors are not recorded."""
    return config.method != "gptq" and config.fsdp == "none"


def recorded(folder: Path, config: TrainingConfig) -> AbstractContextManager[Any]:
    """Return what surrounds the run, so that its twin can be trained."""
    from harness.twin.recording import recording

    return recording(folder) if is_replayed(config) else nullcontext()


def compare_with_twin(order: Order, config: TrainingConfig, samples: Any) -> TwinFacts | None:
    """Return what the twin found, or None where nothing is trained or the twin died.

    Args:
        order: the cell, whose run is recorded in its folder.
        config: its settings.
        samples: the dataset, as the engine takes it.
    """
    if not is_replayed(config):
        return None
    asked = Asked(settings=config.model_dump(mode="json", exclude={"output"}))
    base = str(resolve_model(config.model))
    try:
        run_phase("twin", lambda: _replay(asked, base, order.folder))
    except PhaseEnded as error:
        print(f"the twin did not come to its end: {error}", flush=True)
        return None
    finally:
        forget_recording(order.folder)  # the twin may have been killed
    facts = read_twin(order.folder)
    if config.save_steps is None:
        return facts
    return replace(facts, resume=_compare_resumed(order, config, samples))


def forget_recording(folder: Path) -> None:
    """Remove the recording, which nobody reads any more."""
    (folder / RECORDING_FILE).unlink(missing_ok=True)


def _replay(asked: Asked, base: str, folder: Path) -> None:
    """Be the phase of the twin."""
    from harness.twin.replay import replay

    replay(asked, base, folder)


def _compare_resumed(
    order: Order, config: TrainingConfig, samples: Any
) -> tuple[Deviation, ...] | None:
    """Train again, killed after the first checkpoint, and resume; None where that cannot be."""
    second = order.folder / SECOND_RUN
    again = config.model_copy(update={"output": second / CHECKPOINT})
    try:
        run_phase("killed", lambda: _train(order, again, samples, kill_after=again.save_steps))
        return None  # the run was over before the step after its first checkpoint
    except PhaseEnded as error:
        if error.code != -signal.SIGKILL:
            return (Deviation(what="the same run once more", found=str(error)),)
    go_on = again.model_copy(update={"resume": True})
    try:
        run_phase("resumed", lambda: _train(order, go_on, samples, kill_after=None))
    except PhaseEnded as error:
        return (Deviation(what="the resumed run", found=str(error)),)
    taken = json.loads((second / STEPS_FILE).read_text("utf-8"))
    twice = [step for step in taken if step <= int(again.save_steps or 0)]
    found = [Deviation(what="steps taken again", expected=[], found=twice)] if twice else []
    return (*found, *_differences(order.folder, second))


def _train(order: Order, config: TrainingConfig, samples: Any, *, kill_after: int | None) -> None:
    """Be a run; `kill_after` ends it by SIGKILL in the step after that one."""
    steps: list[int] = []

    def report(step: Any, total: int) -> None:
        del total
        if kill_after is None and step.loss is not None:
            steps.append(step.step)
        if kill_after is not None and step.loss is not None and step.step > kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    order.train(config, samples=samples, records_dir=config.output.parent, report=report)
    if kill_after is None:
        write_json_atomic(config.output.parent / STEPS_FILE, steps)


def _differences(whole: Path, resumed: Path) -> list[Deviation]:
    """Return the first difference of the step logs, and the first file of weights that differs."""
    logs = [_read_log(folder / "steps.jsonl") for folder in (whole, resumed)]
    found = []
    if len(logs[0]) != len(logs[1]):
        counts = [len(log) for log in logs]
        found.append(Deviation(what="lines of the step log", expected=counts[0], found=counts[1]))
    for left, right in zip(*logs, strict=False):
        different = [name for name in LOGGED if left[name] != right[name]]
        if different:
            name = different[0]
            number = int(left["step"])
            found.append(Deviation(what=name, step=number, expected=left[name], found=right[name]))
            break
    for path in sorted((whole / CHECKPOINT).rglob("*.safetensors")):
        name = str(path.relative_to(whole / CHECKPOINT))
        other = resumed / CHECKPOINT / name
        if not other.is_file() or other.read_bytes() != path.read_bytes():
            found.append(Deviation(what="bytes of the weights", tensor=name))
            break
    return found


def _read_log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
