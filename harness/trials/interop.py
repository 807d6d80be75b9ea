"""Train once, and have every artefact opened by someone else's code in a clean interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from harness.facts.trials import Interop, Reading
from harness.observations import Observations
from harness.phases import run_phase
from harness.trials.order import Order
from harness.trials.training import expected_artefacts
from mudpuppy.config import TrainingConfig
from mudpuppy.config_check import load_config
from mudpuppy.files import write_json_atomic

OUTPUT = "artefact"
"""Folder of what is trained. It is not `checkpoint`: only the readers judge it here."""
ReaderName = Literal[
    "transformers", "peft", "gptq", "gguf", "safetensors", "tokenizer", "card", "tensorboard"
]
NUM_ROWS = 3
"""Samples whose logits are compared."""
SAME_WEIGHTS = 1e-4
"""Difference relative to the largest logit where nothing was rounded (measured: 2e-7)."""
ROUNDED_WEIGHTS = {"fp32": SAME_WEIGHTS, "bf16": 0.03, "fp16": 0.005, "fp8": 0.15}
"""The same where weights were rounded once to be saved; fp8 computed with what bf16 now does."""
TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp8": "bfloat16"}
_TOKENIZED: tuple[ReaderName, ...] = ("safetensors", "tokenizer")
BY_ARTEFACT: dict[str, tuple[ReaderName, ...]] = {
    "adapter": ("peft", "card", *_TOKENIZED),
    "merged": ("transformers", *_TOKENIZED),
    "model": ("transformers", *_TOKENIZED),
    "gptq": ("gptq", *_TOKENIZED),
    "int8": ("safetensors",),
}
"""Who reads what."""


class InteropOptions(BaseModel):
    """Settings of the trial, as a scenario's `options` give them."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    readers: tuple[ReaderName, ...] = ()
    """Only these; by default, all that know the artefact."""
    damage: bool = False
    """Plants damage: doubles a matrix of every artefact, so that readers are seen to disagree."""


def perform(order: Order) -> Observations:
    """Train in one phase and read in a clean interpreter.

    Raises:
        UsageError: the engine refuses the settings.
        PhaseEnded: training died.
    """
    options = InteropOptions.model_validate(order.options)
    config = load_config({**order.config, "output": order.folder / OUTPUT})
    order.import_engine()
    run_phase("training", lambda: _train(order, config))
    if options.damage:
        run_phase("damaging", lambda: damage(config.output))
    tasks = list(_plan(order.folder, config, options))
    readings = read_in_clean_interpreter(tasks, order.folder)
    if all(one.ending == "not-run" for one in readings):
        why = "; ".join(dict.fromkeys(f"{one.reader}: {one.detail}" for one in readings))
        return Observations(ending="skipped", message=why or "nothing was to be read")
    return Observations(ending="measured", trial=asdict(Interop(readings=readings)))


class Recorder:
    """Keeps what the trained model says to a few rows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[list[int]] = []

    def on_prepared(self, model: Any, tokenizer: Any, samples: Sequence[Any], eos: Any) -> None:
        """Keep the rows."""
        del model, tokenizer, eos
        self._rows = [list(one.input_ids) for one in samples[:NUM_ROWS]]

    def on_fitted(self, model: Any) -> None:
        """Write the logits."""
        from harness.watching.logits import save_reference

        save_reference(self._path, model, self._rows)


def _train(order: Order, config: TrainingConfig) -> None:
    """Be the training phase."""
    recorder = Recorder(order.folder / "reference.npz")
    order.train(config, watcher=recorder, records_dir=order.folder, say=print)


def _plan(
    folder: Path, config: TrainingConfig, options: InteropOptions
) -> Iterator[dict[str, Any]]:
    """Yield every task: who reads what, and what must come out."""
    from mudpuppy.methods.family import find_family
    from mudpuppy.tiny import resolve_model

    form = find_family(config.method).form
    common = {
        "base": str(resolve_model(config.model)),
        "reference": str(folder / "reference.npz"),
        "steps": str(folder / "steps.jsonl"),
        "auto_class": form.auto_class,
        "settings": dict(form.settings),
        "dtype": TORCH_NAMES[config.precision],
    }
    for artefact in expected_artefacts(config):
        place = config.output / ("" if artefact in ("adapter", "model") else artefact)
        readers = [*BY_ARTEFACT[artefact], *(("gguf",) if "gguf" in options.readers else ())]
        for reader in readers:
            if not options.readers or reader in options.readers:
                bound = _tolerance(artefact, config)
                task = {"artefact": artefact, "reader": reader, "folder": str(place)}
                yield {**common, **task, "tolerance": bound, "why_not": _why_not(reader, config)}
    if config.report_to and (not options.readers or "tensorboard" in options.readers):
        yield {
            **common,
            "artefact": "logs",
            "reader": "tensorboard",
            "folder": str(config.output),
            "why_not": "",
        }


def _tolerance(artefact: str, config: TrainingConfig) -> float:
    """Return what may lie between the trained model and the artefact."""
    return SAME_WEIGHTS if artefact == "adapter" else ROUNDED_WEIGHTS[config.precision]


def _why_not(reader: ReaderName, config: TrainingConfig) -> str:
    """Return why a reader cannot know the artefact, whatever is installed."""
    if reader == "peft" and config.method == "qlora":
        return "the base is held in this engine's own 4-bit blocks; the merged model is compared"
    return ""


def read_in_clean_interpreter(
    tasks: Sequence[dict[str, Any]], folder: Path, python: str = sys.executable
) -> tuple[Reading, ...]:
    """Have the tasks done by an interpreter that knows nothing of the engine.

    A reader that ends the interpreter is told by its name, and the others go on in a new one.

    Args:
        tasks: what to read, as `harness.trials.foreign` takes it.
        folder: where tasks and answers are written.
        python: the interpreter.

    Raises:
        RuntimeError: the interpreter had imported the engine, or it answered nothing at all.
    """
    readings: dict[int, Reading] = {
        n: _reading(
            task, {"reader": task["reader"], "ending": "not-run", "detail": task["why_not"]}
        )
        for n, task in enumerate(tasks)
        if task["why_not"]
    }
    answers = folder / "answers.jsonl"
    while left := [n for n in range(len(tasks)) if n not in readings]:
        write_json_atomic(folder / "tasks.json", [tasks[n] for n in left])
        answers.unlink(missing_ok=True)
        words = ["-m", "harness.trials.foreign", str(folder / "tasks.json"), str(answers)]
        done = subprocess.run([python, *words], stdin=subprocess.DEVNULL)
        lines = answers.read_text(encoding="utf-8").splitlines() if answers.exists() else []
        found = [json.loads(line) for line in lines]
        if done.returncode > 0 or not found:
            raise RuntimeError(f"the foreign readers ended with exit code {done.returncode}")
        for line in found:
            number = left[line.pop("number")]
            if not line.pop("started", False):
                readings[number] = _reading(tasks[number], line)
        if done.returncode < 0:
            # They are done in their order; after the last answer it is the last that is to blame.
            number = next((n for n in left if n not in readings), left[-1])
            died = {"ending": "refused", "detail": f"the reader ended by signal {-done.returncode}"}
            readings[number] = _reading(tasks[number], {"reader": tasks[number]["reader"], **died})
    return tuple(readings[n] for n in sorted(readings))


def _reading(task: dict[str, Any], answer: dict[str, Any]) -> Reading:
    return Reading(artefact=task["artefact"], **answer)


def damage(folder: Path) -> None:
    """Double the largest matrix of every safetensors file below a folder."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, framework="pt") as handle:
            told = handle.metadata()
        tensors = load_file(path)
        matrices = [name for name, one in tensors.items() if one.dim() == 2]
        largest = max(matrices, key=lambda name: int(tensors[name].numel()))
        tensors[largest] = tensors[largest] * 2
        save_file(tensors, path, told)
