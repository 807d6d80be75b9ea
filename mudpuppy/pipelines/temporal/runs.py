"""Folders of runs: how they are named, where one goes on, and what is left when it has ended.

RUN/checkpoint-N         what a run goes on from
RUN/final/               adapter and tokenizer, complete when the folder is there
RUN/train_results.json   the trainer's figures, as transformers' `save_metrics` names them
RUN/eval_results.json
"""

from __future__ import annotations

import json
import re
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

from mudpuppy.checkpoints import find_fault, list_checkpoints
from mudpuppy.errors import OutputError
from mudpuppy.files import atomic_folder, write_json_atomic
from mudpuppy.leftovers import CHECKPOINT_FOLDER, LOCK_FILE, RUN_FILE, STEPS_FILE
from mudpuppy.logs import LOG_FOLDERS
from mudpuppy.provenance import PROVENANCE_FILE

OUTPUT_ROOT = Path("output")
"""Where runs go that are not given a folder."""
FINAL = "final"
RESULTS = {"train": "train_results.json", "eval": "eval_results.json"}
STAYS = (RUN_FILE, STEPS_FILE, LOCK_FILE, FINAL, *RESULTS.values(), *LOG_FOLDERS.values())
"""What of a run does not belong to its adapter."""
SET_ASIDE = "set-aside-"
"""Begins the name that a checkpoint gets when a run goes on from one before it."""
_UNSAFE = re.compile(r"[^\w.-]+", re.ASCII)


def run_name(model: str, *, is_dev: bool, now: datetime) -> str:
    """Return the name of a new run: `temporal-qwen2.5-1.5b-instruct-full-20251226_211325`."""
    return f"{_stem(model, is_dev=is_dev)}-{now:%Y%m%d_%H%M%S}"


def _stem(model: str, *, is_dev: bool) -> str:
    last = model.rstrip("/").rpartition("/")[2].lower()
    return f"temporal-{_UNSAFE.sub('-', last).strip('-') or 'model'}-{'dev' if is_dev else 'full'}"


def newest_run(model: str, *, is_dev: bool) -> Path:
    """Return the newest run of its name that has a checkpoint.

    Raises:
        OutputError: there is none.
    """
    stem = _stem(model, is_dev=is_dev)
    named = re.compile(re.escape(stem) + r"-\d{8}_\d{6}")
    runs = [one for one in OUTPUT_ROOT.glob(f"{stem}-*") if named.fullmatch(one.name)]
    for run in sorted(runs, reverse=True):
        if list_checkpoints(run):
            return run
    raise OutputError(
        f"there is no run {OUTPUT_ROOT / stem}-* with a checkpoint to resume from",
        hint="name the run's folder with --output_dir, or leave out --resume_latest",
    )


def is_finished(run: Path) -> bool:
    """Return whether the run has its final adapter."""
    return (run / FINAL / PROVENANCE_FILE).is_file()


def go_on_from(checkpoint: Path) -> None:
    """Let a run go on from this checkpoint: newer ones are renamed, so that none is lost.

    Raises:
        OutputError: it is no checkpoint, or not complete.
    """
    if not CHECKPOINT_FOLDER.fullmatch(checkpoint.name) or not checkpoint.is_dir():
        known = ", ".join(path.name for _, path in list_checkpoints(checkpoint.parent)) or "none"
        raise OutputError(
            f"--resume_from_checkpoint {checkpoint} is no checkpoint",
            hint=f"checkpoints in {checkpoint.parent}: {known}",
        )
    fault = find_fault(checkpoint, deep=True)
    if fault:
        raise OutputError(
            f"{checkpoint} is incomplete: {fault}",
            hint="--resume_latest goes on from the newest complete one",
        )
    step = int(checkpoint.name.rpartition("-")[2])
    for other, path in list_checkpoints(checkpoint.parent):
        if other > step:
            target = path.with_name(SET_ASIDE + path.name)
            shutil.rmtree(target, ignore_errors=True)
            path.rename(target)


def publish(run: Path) -> dict[str, dict[str, Any]]:
    """Move what the engine left in a run into `final/`, write the results, and return them.

    The manifest goes last: a run that is killed in here is published by the next call.

    Raises:
        OSError: something cannot be written.
    """
    final = run / FINAL
    entries = [path for path in run.iterdir() if _is_of_adapter(path)]
    if not is_finished(run):
        with atomic_folder(final, replace=True) as folder:
            for path in entries:
                if path.is_dir():
                    shutil.copytree(path, folder / path.name)
                else:
                    shutil.copy2(path, folder / path.name)
    results = _write_results(run)
    for path in sorted(entries, key=lambda one: one.name == PROVENANCE_FILE):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return results


def is_unpublished(run: Path) -> bool:
    """Return whether the engine has finished in a run, and its adapter is not in `final/` yet."""
    return (run / PROVENANCE_FILE).is_file()


def _is_of_adapter(path: Path) -> bool:
    is_other = path.name in STAYS or CHECKPOINT_FOLDER.fullmatch(path.name)
    return not is_other and not path.name.startswith((".", SET_ASIDE))


def _write_results(run: Path) -> dict[str, dict[str, Any]]:
    """Write the trainer's figures as `save_metrics` does: sorted, those of `eval_` apart."""
    metrics = json.loads((run / RUN_FILE).read_text(encoding="utf-8"))["metrics"]
    results = {
        part: {
            name: value
            for name, value in sorted(metrics.items())
            if name == "epoch" or name.startswith("eval_") == (part == "eval")
        }
        for part in RESULTS
    }
    for part, name in RESULTS.items():
        write_json_atomic(run / name, results[part])
    return results
