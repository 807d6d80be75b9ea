"""Train once as the cell says, watched from inside, and reopen the artefact in a fresh process."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.audit import take_out_rules
from harness.observations import Observations, read_observations
from harness.phases import PhaseEnded, run_phase, run_team
from harness.trials.order import CHECKPOINT, Order
from harness.trials.prior import with_prior_adapter
from harness.twin.trial import compare_with_twin, forget_recording, recorded
from mudpuppy import team
from mudpuppy.config import TrainingConfig
from mudpuppy.config_check import load_config
from mudpuppy.errors import MudpuppyError, UsageError
from mudpuppy.preflight import preflight
from mudpuppy.provenance import read_provenance

TRAINED_FILE = "trained.json"
"""What the training phase saw, for the leader."""
TEAM = 2
"""Processes that train together under FSDP."""


def perform(order: Order) -> Observations:
    """Train under watch and compare the artefacts in a fresh process.

    Raises:
        UsageError: the engine refuses the cell.
        PhaseEnded: a phase died without having said why.
    """
    take_out_rules(order.options)
    config = load_config({**order.config, "output": order.folder / CHECKPOINT})
    started = time.monotonic()
    config = with_prior_adapter(order, config)
    # A run of several processes is only accepted inside them.
    samples = preflight(config) if config.fsdp == "none" else None
    order.import_engine()
    imported = time.monotonic()
    _run("training", lambda: _train(order, config, samples), config)
    trained = time.monotonic()
    seen = read_observations(order.folder, TRAINED_FILE)
    assert seen is not None
    if seen.ending != "trained":
        forget_recording(order.folder)
        return seen
    try:
        run_phase("reloading", lambda: _reload(order))
    except PhaseEnded as error:
        forget_recording(order.folder)
        message = f"the artefact does not reload: {error}"
        return replace(seen, ending="crashed", message=message)
    from harness.reload import read_reload

    reloaded = time.monotonic()
    twin = compare_with_twin(order, config, samples)
    seconds = {
        "import": round(imported - started, 3),
        "train": round(trained - imported, 3),
        "reload": round(reloaded - trained, 3),
        "twin": round(time.monotonic() - reloaded, 3),
    }
    return replace(seen, **read_reload(order.folder), twin=twin, seconds=seconds)


def _run(name: str, work: Callable[[], Any], config: TrainingConfig) -> None:
    """Run a phase that trains, in as many processes as the settings need."""
    if config.fsdp == "none":
        run_phase(name, work)
    else:
        run_team(name, work, TEAM)


class _Watch:
    """Holds the watcher once there is one, so that a crash keeps what it saw."""

    watcher: Any = None

    def seen(self) -> dict[str, Any]:
        """Return motion, labels and the like, as far as they were measured."""
        if self.watcher is None:
            return {}
        self.watcher.stop()
        names = ("motion", "labels", "mechanics", "memory", "calibration", "dataset")
        losses = ("loss_before", "loss_after", "loss_noise")
        return {name: getattr(self.watcher, name) for name in (*names, *losses)}


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
    if team.is_first():
        seen.write(order.folder, TRAINED_FILE)


def _observe(order: Order, config: TrainingConfig, samples: Any, watch: _Watch) -> Observations:
    from harness.artefact import describe_artefact, read_template
    from harness.required import SCORERS
    from harness.watcher import TrainingWatcher
    from harness.watching.deprecations import hearing_deprecations
    from mudpuppy.tiny import resolve_model

    folder = order.folder
    base = resolve_model(config.model)
    watch.watcher = TrainingWatcher(folder, config, base)
    with hearing_deprecations() as deprecations, recorded(folder, config):
        record = order.train(
            config,
            samples=samples,
            watcher=watch.watcher,
            records_dir=folder,
            report=lambda step, total: print(f"step {step.step}/{total} loss {step.loss}"),
            say=lambda text: print(text, flush=True),
        )
    layers = record.quantisation.get("layers", [])
    losses = read_steps(folder)
    return Observations(
        ending="trained",
        run=record.to_json(),
        losses=tuple(step["loss"] for step in losses),
        evaluations=read_evaluations(folder),
        learning_rates=tuple(step["learning_rate"] for step in losses),
        rewards=tuple(step["reward"] for step in losses) if config.method == "grpo" else (),
        artefacts=tuple(
            describe_artefact(
                name,
                config.output if name in ("adapter", "model") else config.output / name,
                Path(base),
                speaks=config.method not in SCORERS,
            )
            for name in expected_artefacts(config)
        ),
        **watch.seen(),
        expected_artefacts=expected_artefacts(config),
        folders=tuple(sorted(p.name for p in config.output.iterdir() if p.is_dir())),
        files=list_output(config.output),
        deprecations=tuple(deprecations),
        recorded=read_provenance(config.output) or {},
        template=read_template(Path(base)),
        gptq_errors=tuple(
            (x["name"], x["gptq_error"], x["rtn_error"]) for x in layers if "gptq_error" in x
        ),
    )


def expected_artefacts(config: TrainingConfig) -> tuple[str, ...]:
    """Return what the configuration promises to leave behind."""
    if config.method == "gptq":
        return ("gptq",)
    if config.method == "qat":
        return ("model", "int8")
    if not config.trains_adapter:
        return ("model",)
    return ("adapter", "merged") if config.merge_lora else ("adapter",)


def list_output(output: Path) -> tuple[str, ...]:
    """Return every file below a run's folder, hidden ones too, relative to it."""
    found = (path for path in output.rglob("*") if not path.is_dir())
    return tuple(sorted(path.relative_to(output).as_posix() for path in found))


def read_steps(folder: Path) -> list[dict[str, Any]]:
    """Return every training step from the log that the engine wrote."""
    return [step for step in _read_log(folder) if step["loss"] is not None]


def read_evaluations(folder: Path) -> tuple[tuple[int, float], ...]:
    """Return the steps done and the loss of every evaluation, from the same log."""
    lines = (line for line in _read_log(folder) if line["eval_loss"] is not None)
    return tuple((line["step"], line["eval_loss"]) for line in lines)


def _read_log(folder: Path) -> list[dict[str, Any]]:
    with suppress(FileNotFoundError):
        lines = (folder / "steps.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]
    return []


def _reload(order: Order) -> None:
    """Be the reloading phase.

    Raises:
        SystemExit: the artefact is not complete; said on standard error.
    """
    from harness.reload import reload_cell

    if reload_cell(order.folder, order.options):
        raise SystemExit(1)
