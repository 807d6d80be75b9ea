"""One cell of the matrix in a process of its own: train, watch, reload afresh, write observations.

    python -m harness.worker CELL_DIR

Reads CELL_DIR/config.json, leaves CELL_DIR/checkpoint/ and, last, CELL_DIR/observations.json. Exit
code 0 means that the cell was observed, whatever was seen. The only importer of `mudpuppy.engine`,
and it imports it late: a rejection must come before torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from harness.mutants import plant_mutant
from harness.observations import Observations
from mudpuppy.config import TrainingConfig
from mudpuppy.config_check import load_config
from mudpuppy.data.samples import answers_of
from mudpuppy.errors import MudpuppyError, UnsupportedCombination, UsageError
from mudpuppy.preflight import preflight

CHECKPOINT = "checkpoint"


def main(argv: list[str] | None = None) -> int:
    """Run the cell in the folder that is named, and return 0 when it was observed."""
    (folder_name,) = sys.argv[1:] if argv is None else argv
    folder = Path(folder_name).resolve()
    cell = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if cell.get("plant"):
        plant_mutant(cell["plant"])
    watch = _Watch()
    try:
        seen = _observe(folder, cell["config"], watch)
    except UnsupportedCombination as error:
        seen = _refused(folder, "rejected", error, error.codes)
    except UsageError as error:
        seen = _refused(folder, "refused", error, ())
    except Exception as error:  # noqa: BLE001 - what was seen until then is what tells the cause
        traceback.print_exc()
        name = "" if isinstance(error, MudpuppyError) else f"{type(error).__name__}: "
        seen = Observations(ending="crashed", message=f"{name}{error}", **watch.seen())
    seen.write(folder)
    return 0


class _Watch:
    """Holds the watcher once torch is imported, so that a crash keeps what it saw."""

    watcher: Any = None

    def seen(self) -> dict[str, Any]:
        """Return motion and labels, as far as they were measured."""
        if self.watcher is None:
            return {}
        names = ("motion", "labels", "mechanics", "loss_before", "loss_after")
        return {name: getattr(self.watcher, name) for name in names}


def _refused(folder: Path, ending: Any, error: UsageError, codes: tuple[str, ...]) -> Observations:
    """Record a refusal: when it came, and that nothing was written."""
    print(f"{ending}: {error}", flush=True)
    output = folder / CHECKPOINT
    written = [str(p.relative_to(folder)) for p in output.rglob("*")] if output.exists() else []
    return Observations(
        ending=ending,
        codes=codes,
        message=str(error),
        torch_imported="torch" in sys.modules,
        files_written=tuple(sorted(written)),
    )


def _observe(folder: Path, settings: dict[str, Any], watch: _Watch) -> Observations:
    """Train under watch and compare the artefacts in a fresh process."""
    config = load_config({**settings, "output": folder / CHECKPOINT})
    samples = preflight(config)
    started = time.monotonic()

    from harness.artefact import describe_artefact
    from harness.watcher import TrainingWatcher
    from mudpuppy.engine import train
    from mudpuppy.tiny import resolve_model

    imported = time.monotonic()
    answers = [text for sample in samples for text in answers_of(sample)]
    watch.watcher = TrainingWatcher(folder, answers, trains_adapter=config.trains_adapter)
    record = train(
        config,
        samples=samples,
        watcher=watch.watcher,
        records_dir=folder,
        report=lambda step, total: print(f"step {step.step}/{total} loss {step.loss}", flush=True),
        say=lambda text: print(text, flush=True),
    )
    trained = time.monotonic()
    comparisons = _reload(folder)
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
        comparisons=tuple(comparisons),
        **watch.seen(),
        expected_artefacts=expected_artefacts(config),
        folders=tuple(sorted(p.name for p in config.output.iterdir() if p.is_dir())),
        gptq_errors=tuple((x["name"], x["gptq_error"], x["rtn_error"]) for x in layers),
        seconds={
            "import": round(imported - started, 3),
            "train": round(trained - imported, 3),
            "reload": round(time.monotonic() - trained, 3),
        },
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


def _reload(folder: Path) -> list[Any]:
    """Open every artefact in a fresh interpreter, by other people's code where that exists.

    Raises:
        MudpuppyError: the artefact could not be opened.
    """
    from harness.observations import Comparison

    done = subprocess.run([sys.executable, "-m", "harness.reload", str(folder)], check=False)
    if done.returncode != 0:
        raise MudpuppyError(f"the artefact does not reload: exit code {done.returncode}, see above")
    found = json.loads((folder / "reload.json").read_text(encoding="utf-8"))
    return [Comparison(**item) for item in found]


if __name__ == "__main__":
    raise SystemExit(main())
