"""Train once as the cell says, watched from inside, and reopen the artefact in a fresh process."""

from __future__ import annotations

import json
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.observations import Comparison, Observations, read_observations
from harness.phases import PhaseEnded, run_phase
from harness.trials.order import CHECKPOINT, Order
from harness.trials.prior import with_prior_adapter
from mudpuppy.config import TrainingConfig
from mudpuppy.config_check import load_config
from mudpuppy.data.samples import answers_of
from mudpuppy.errors import MudpuppyError, UsageError
from mudpuppy.preflight import preflight

TRAINED_FILE = "trained.json"
"""What the training phase saw, for the leader."""


def perform(order: Order) -> Observations:
    """Train under watch and compare the artefacts in a fresh process.

    Raises:
        UsageError: the engine refuses the cell.
        PhaseEnded: a phase died without having said why.
    """
    config = load_config({**order.config, "output": order.folder / CHECKPOINT})
    config = with_prior_adapter(order, config)
    samples = preflight(config)
    started = time.monotonic()
    order.import_engine()
    imported = time.monotonic()
    run_phase("training", lambda: _train(order, config, samples))
    trained = time.monotonic()
    seen = read_observations(order.folder, TRAINED_FILE)
    assert seen is not None
    if seen.ending != "trained":
        return seen
    try:
        run_phase("reloading", lambda: _reload(order.folder))
    except PhaseEnded as error:
        message = f"the artefact does not reload: {error}"
        return replace(seen, ending="crashed", message=message)
    found = json.loads((order.folder / "reload.json").read_text(encoding="utf-8"))
    seconds = {
        "import": round(imported - started, 3),
        "train": round(trained - imported, 3),
        "reload": round(time.monotonic() - trained, 3),
    }
    comparisons = tuple(Comparison(**item) for item in found)
    return replace(seen, comparisons=comparisons, seconds=seconds)


class _Watch:
    """Holds the watcher once there is one, so that a crash keeps what it saw."""

    watcher: Any = None

    def seen(self) -> dict[str, Any]:
        """Return motion, labels and the like, as far as they were measured."""
        if self.watcher is None:
            return {}
        names = ("motion", "labels", "mechanics", "loss_before", "loss_after")
        return {name: getattr(self.watcher, name) for name in names}


def _train(order: Order, config: TrainingConfig, samples: Any) -> None:
    """Be the training phase: train, and write down what was seen, whatever happens."""
    watch = _Watch()
    try:
        seen = _observe(order, config, samples, watch)
    except UsageError as error:
        seen = Observations(ending="refused", message=str(error), **watch.seen())
    except Exception as error:  # noqa: BLE001 - what was seen until then is what tells the cause
        traceback.print_exc()
        name = "" if isinstance(error, MudpuppyError) else f"{type(error).__name__}: "
        seen = Observations(ending="crashed", message=f"{name}{error}", **watch.seen())
    seen.write(order.folder, TRAINED_FILE)


def _observe(order: Order, config: TrainingConfig, samples: Any, watch: _Watch) -> Observations:
    from harness.artefact import describe_artefact
    from harness.watcher import TrainingWatcher
    from mudpuppy.tiny import resolve_model

    folder = order.folder
    answers = [text for sample in samples for text in answers_of(sample)]
    watch.watcher = TrainingWatcher(folder, answers, trains_adapter=config.trains_adapter)
    record = order.train(
        config,
        samples=samples,
        watcher=watch.watcher,
        records_dir=folder,
        report=lambda step, total: print(f"step {step.step}/{total} loss {step.loss}", flush=True),
        say=lambda text: print(text, flush=True),
    )
    layers = record.quantisation.get("layers", [])
    return Observations(
        ending="trained",
        run=record.to_json(),
        losses=_read_steps(folder, "loss"),
        learning_rates=_read_steps(folder, "learning_rate"),
        artefacts=tuple(
            describe_artefact(
                name,
                config.output if name in ("adapter", "model") else config.output / name,
                Path(resolve_model(config.model)),
            )
            for name in expected_artefacts(config)
        ),
        **watch.seen(),
        expected_artefacts=expected_artefacts(config),
        folders=tuple(sorted(p.name for p in config.output.iterdir() if p.is_dir())),
        gptq_errors=tuple((x["name"], x["gptq_error"], x["rtn_error"]) for x in layers),
    )


def expected_artefacts(config: TrainingConfig) -> tuple[str, ...]:
    """Return what the configuration promises to leave behind."""
    if config.method == "gptq":
        return ("gptq",)
    if not config.trains_adapter:
        return ("model",)
    return ("adapter", "merged") if config.merge_lora else ("adapter",)


def _read_steps(folder: Path, name: str) -> tuple[float, ...]:
    """Return one number of every training step from the log that the engine wrote."""
    path = folder / "steps.jsonl"
    if not path.exists():
        return ()
    steps = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return tuple(step[name] for step in steps if step["loss"] is not None)


def _reload(folder: Path) -> None:
    """Be the reloading phase.

    Raises:
        SystemExit: the artefact is not complete; said on standard error.
    """
    from harness.reload import main

    if main([str(folder)]):
        raise SystemExit(1)
