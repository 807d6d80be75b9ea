"""One cell of the matrix in a process of its own: do its trial, write observations.

    python -m harness.worker CELL_DIR

Reads CELL_DIR/config.json, leaves CELL_DIR/checkpoint/ and, last, CELL_DIR/observations.json. Exit
code 0 means that the cell was observed, whatever was seen. The only importer of `mudpuppy.engine`,
and it imports it late: a rejection must come before torch.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from harness.mutants import plant_mutant
from harness.observations import Observations
from harness.phases import PhaseEnded
from harness.process import tell_stack_when_ended
from harness.trials.order import CHECKPOINT, Order
from mudpuppy.errors import MudpuppyError, UnsupportedCombination, UsageError

MEASURING = (
    "harness.artefact",
    "harness.evidence.behaviour.models",
    "harness.evidence.files.inventory",
    "harness.reload",
    "harness.trials.training",
    "harness.twin.recording",
    "harness.twin.replay",
    "harness.watcher",
)
"""Modules that watch a run and measure what it left behind."""
IMPORTED_LATE = (
    "numpy.ctypeslib",
    "peft.utils.transformers_weight_conversion",
    "torch.profiler._cupti_monitor",
    "transformers.models.llama.modeling_llama",
    "transformers.models.llava.modeling_llava",
)
"""Modules that the libraries import only once a model is loaded or trained."""


def main(argv: list[str] | None = None) -> int:
    """Run the cell in the folder that is named, and return 0 when it was observed."""
    (folder_name,) = sys.argv[1:] if argv is None else argv
    folder = Path(folder_name).resolve()
    tell_stack_when_ended()
    cell = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if cell.get("plant"):
        plant_mutant(cell["plant"])
    order = Order(
        folder=folder,
        config=cell["config"],
        options=cell["options"],
        expect=cell["expect"],
        train=_train,
        import_engine=import_engine,
    )
    try:
        seen = _perform(cell["trial"], order)
    except UnsupportedCombination as error:
        seen = _refused(folder, "rejected", error, error.codes)
    except UsageError as error:
        seen = _refused(folder, "refused", error, ())
    except PhaseEnded as error:
        if error.code < 0:
            _end_like_phase(-error.code)
        seen = Observations(ending="crashed", message=str(error))
    except Exception as error:  # noqa: BLE001 - what was seen until then is what tells the cause
        traceback.print_exc()
        name = "" if isinstance(error, MudpuppyError) else f"{type(error).__name__}: "
        seen = Observations(ending="crashed", message=f"{name}{error}")
    seen.write(folder)
    return 0


def import_engine() -> None:
    """Import the engine and all that cells use of the libraries; compute nothing, ask no device."""
    importlib.import_module("mudpuppy.engine")
    package = importlib.import_module("mudpuppy.methods")
    for info in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"mudpuppy.methods.{info.name}")
    for name in (*MEASURING, *IMPORTED_LATE):
        importlib.import_module(name)
    # Thousands of patterns, the same for every model, compiled when the first one is loaded.
    conversion: Any = importlib.import_module("transformers.conversion_mapping")
    conversion.get_checkpoint_conversion_mapping("llama")


def import_light() -> None:
    """Import what a rejection needs, and nothing that brings torch."""
    for name in ("harness.trials.training", "harness.mutants", "mudpuppy.preflight"):
        importlib.import_module(name)


def _train(*words: Any, **named: Any) -> Any:
    """Call the engine, imported no earlier than now."""
    from mudpuppy.engine import train

    return train(*words, **named)


def _perform(trial: str, order: Order) -> Observations:
    """Do what the cell's trial does."""
    module: Any = importlib.import_module(f"harness.trials.{trial}")
    seen: Observations = module.perform(order)
    return seen


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


def _end_like_phase(number: int) -> None:
    """End by the signal that ended a phase, so that the runner sees it."""
    sys.stdout.flush()
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


if __name__ == "__main__":
    raise SystemExit(main())
