"""Evidence from the record of a run: trainer_state.json, steps.jsonl or trainer_log.jsonl.

Any trainer may have written it: transformers and what is built on it, this project's engine,
LLaMA-Factory. `training_args.bin` is a pickle and is never opened; what a run was asked for is
taken from `mudpuppy.json`, or from the model card that transformers writes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.evidence.files.inventory import leaves_folder, list_files, list_folders
from harness.evidence.files.jsonfile import UnreadableJson, parse_object, read_object
from harness.evidence.files.model import text_settings
from harness.evidence.files.presence import is_subject
from harness.evidence.source import CheckpointEvidence, provides
from harness.facts.checkpoint import Adapter, Base
from harness.facts.records import Point, TrainingLog
from harness.registry import Missing, NotApplicable
from mudpuppy.files import open_regular

STATE = "trainer_state.json"
"""What transformers writes into every checkpoint."""
LOGS = ("steps.jsonl", "trainer_log.jsonl")
"""One JSON object a line: this project's engine, and LLaMA-Factory."""
SUMMARY = "all_results.json"
"""What transformers' example scripts write at the end: means over the whole run."""
CARD = "README.md"
CHECKPOINT = re.compile(r"checkpoint-(\d{1,12})")
LOG_LIMIT_BYTES = 32_000_000
"""Bytes of a line-wise log that are read."""
LINE_LIMIT_BYTES = 65_536
CARD_LIMIT_BYTES = 200_000
ROW_LIMIT = 100_000
"""Rows of a record that are read."""
NAME_LIMIT = 400
"""Different series of a record that are kept."""
RENAMED = {"current_steps": "step", "total_steps": "max_steps", "lr": "learning_rate"}
"""LLaMA-Factory's names, by transformers'."""
NEVER_NULL = ("loss", "grad_norm")
"""Numbers of which a row of training holds none where they were not finite."""
_SETTING = re.compile(r"^- (?P<name>[a-z_]{4,40}): (?P<value>[^\n]{1,80})$", re.MULTILINE)


@provides("training_log")
def find_training_log(evidence: CheckpointEvidence) -> TrainingLog:
    """Return the record of the run that made the folder.

    Raises:
        NotApplicable: there is none here, or another folder of the same output speaks for the run.
        Missing: it cannot be read.
    """
    if evidence.file:
        raise NotApplicable("a single file has no record of its training")
    _defer(evidence)
    path = next(_places(evidence), None)
    if path is None:
        raise NotApplicable("no record of a training run lies here")
    try:
        if path.name == SUMMARY:
            head = read_object(path)
            rows: Iterable[Any] = ({**head, "step": 0},)
        elif path.name == STATE:
            head = read_object(path)
            history = head.get("log_history")
            rows = history[:ROW_LIMIT] if isinstance(history, list) else ()
        else:
            head, rows = {}, _read_lines(path)
        series, last = _gather(rows)
    except (UnreadableJson, OSError) as problem:
        raise Missing(f"{path.name} cannot be read: {problem}") from problem
    return _describe(evidence, path, {**last, **head}, series)


def _defer(evidence: CheckpointEvidence) -> None:
    """Leave it to one folder of an output to speak for the run.

    Raises:
        NotApplicable: the output itself, or a newer checkpoint in it, does.
    """
    folder, root = evidence.folder, evidence.options.root
    if root is None or folder == root or not CHECKPOINT.fullmatch(folder.name):
        return
    if folder.parent != root:
        return
    if is_subject(root):
        raise NotApplicable("the record of the run is judged for the whole output")
    newest = next(_states_below(root), None)
    if newest is not None and newest.parent != folder:
        raise NotApplicable(f"{newest.parent.name} holds the whole record of the run")


def _places(evidence: CheckpointEvidence) -> Iterator[Path]:
    """Yield where the record may lie, the surest place first."""
    own = _find_own(evidence.folder)
    if own is not None:
        yield own
    if evidence.options.run_folder is not None:
        below = _find_own(evidence.options.run_folder)
        if below is not None:
            yield below
    yield from _states_below(evidence.folder)
    summary = evidence.folder / SUMMARY
    if summary.is_file() and not leaves_folder(evidence.folder, SUMMARY):
        yield summary


def _find_own(folder: Path) -> Path | None:
    try:
        names = list_files(folder)
    except Missing:
        return None
    wanted = (name for name in (*LOGS[:1], STATE, *LOGS[1:]) if name in names)
    return next((folder / name for name in wanted if not leaves_folder(folder, name)), None)


def _states_below(folder: Path) -> Iterator[Path]:
    """Yield the states of the checkpoints in a folder, the newest first."""
    names = [name for name in list_folders(folder) if CHECKPOINT.fullmatch(name)]
    for name in sorted(names, key=lambda one: -int(one.rpartition("-")[2])):
        path = folder / name / STATE
        if path.is_file() and not leaves_folder(path.parent, STATE):
            yield path


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a line-wise log; a last line that was cut off is no error."""
    left = LOG_LIMIT_BYTES
    with open_regular(path) as handle:
        for _ in range(ROW_LIMIT):
            line = handle.readline(LINE_LIMIT_BYTES)
            left -= len(line)
            if not line or left < 0:
                return
            try:
                yield parse_object(line)[0]
            except UnreadableJson:
                continue


def _gather(rows: Iterable[Any]) -> tuple[dict[str, tuple[Point, ...]], dict[str, Any]]:
    """Return the series of rows, and the last row."""
    found: dict[str, list[Point]] = {}
    last: dict[str, Any] = {}
    for row in rows:
        if not isinstance(row, dict):
            continue
        last = {_rename(str(name)): value for name, value in row.items()}
        step = read_number(last.get("step"))
        if step is None or not 0 <= step < 1e12:
            continue
        for name, value in _numbers(last).items():
            if name in found or len(found) < NAME_LIMIT:
                found.setdefault(name[:200], []).append(Point(step=int(step), value=value))
    return {name: tuple(points) for name, points in found.items()}, last


def _rename(name: str) -> str:
    return RENAMED.get(name, name)


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of one row, with those that a list of further ones holds."""
    metrics = row.get("metrics")
    nested = metrics if isinstance(metrics, dict) else {}
    is_training = isinstance(row.get("learning_rate"), int | float) and not row.get("eval_loss")
    found = {}
    for name, value in (*row.items(), *nested.items()):
        if name in ("step", "metrics"):
            continue
        if value is None and name in NEVER_NULL and is_training and name in row:
            # An engine whose JSON has no NaN writes null; a row that never had the number differs.
            found[name] = math.nan
        elif (number := read_number(value)) is not None:
            found[name] = number
    return found


def read_number(value: Any) -> float | None:
    """Return a number, also one that is written as a text (`nan`, `1e-5`); None for others."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value) if not isinstance(value, str) or len(value) <= 40 else None
    except (ValueError, OverflowError):
        return None


def _describe(
    evidence: CheckpointEvidence,
    path: Path,
    head: Mapping[str, Any],
    series: Mapping[str, tuple[Point, ...]],
) -> TrainingLog:
    asked, asked_in = _read_asked(evidence)
    place = CHECKPOINT.fullmatch(path.parent.resolve().name) if path.name == STATE else None
    best = head.get("best_model_checkpoint")
    inside = path.parent == evidence.folder
    epochs = read_number(head.get("epoch"))
    is_text, vocabulary = _find_vocabulary(evidence)
    return TrainingLog(
        file=path.name if inside else f"{path.parent.name}/{path.name}",
        series=series,
        is_state=path.name == STATE,
        place=int(place[1]) if place else None,
        finished_steps=_count(head.get("global_step")),
        planned_steps=_count(head.get("max_steps")) or None,
        planned_epochs=read_number(head.get("num_train_epochs")),
        epochs=epochs,
        best_place=re.split(r"[/\\]", best)[-1][:100] if isinstance(best, str) else "",
        can_stop_early=_can_stop_early(head.get("stateful_callbacks")),
        samples=_find_samples(evidence, series, epochs),
        asked=asked,
        asked_in=asked_in,
        is_text=is_text,
        vocabulary=vocabulary if is_text else None,
    )


def _count(value: Any) -> int | None:
    number = read_number(value)
    return int(number) if number is not None and 0 <= number < 1e12 else None


def _can_stop_early(callbacks: Any) -> bool:
    if not isinstance(callbacks, dict):
        return False
    control = callbacks.get("TrainerControl")
    arguments = control.get("args") if isinstance(control, dict) else None
    stopped = isinstance(arguments, dict) and arguments.get("should_training_stop") is True
    return stopped or any("Stopping" in str(name) for name in callbacks)


def _find_samples(
    evidence: CheckpointEvidence, series: Mapping[str, tuple[Point, ...]], epochs: float | None
) -> float | None:
    """Return the rows of the training set.

    Our own record counts them. transformers logs how many rows it took each second and how many
    seconds it took at the end of a run; over the epochs, that is the set.
    """
    labels = evidence.get("origin").get("labels")
    counted = read_number(labels.get("samples")) if isinstance(labels, dict) else None
    if counted is not None and counted > 0:
        return counted
    rate, seconds = series.get("train_samples_per_second"), series.get("train_runtime")
    if not rate or not seconds or not epochs:
        return None
    found = rate[-1].value * seconds[-1].value / epochs
    return found if math.isfinite(found) and found > 0 else None


def _find_vocabulary(evidence: CheckpointEvidence) -> tuple[bool, int | None]:
    """Return whether the model predicts tokens, and the size of its vocabulary."""
    adapter: Adapter | None = evidence.find("adapter")
    task = adapter.settings.get("task_type") if adapter else None
    if task not in (None, "CAUSAL_LM", "SEQ_2_SEQ_LM"):
        return False, None
    config: Mapping[str, Any] = evidence.find("config") or {}
    if not config:
        base: Base | None = evidence.find("base")
        config = base.config if base else {}
    kinds = config.get("architectures")
    first = str(kinds[0]) if isinstance(kinds, list) and kinds else ""
    if task is None and not first.endswith(("LMHeadModel", "LM", "ForConditionalGeneration")):
        return False, None
    size = read_number(text_settings(config).get("vocab_size"))
    return True, int(size) if size is not None and 1 < size < 1e9 else None


def _read_asked(evidence: CheckpointEvidence) -> tuple[dict[str, Any], str]:
    """Return the settings that a run was started with, and the file that says so."""
    config = evidence.get("origin").get("config")
    if isinstance(config, dict):
        names = {"learning_rate": "learning_rate", "lr_scheduler": "lr_scheduler_type"}
        names |= {"gradient_accumulation": "gradient_accumulation_steps"}
        return {new: config[old] for old, new in names.items() if old in config}, "mudpuppy.json"
    if CARD not in list_files(evidence.folder) or leaves_folder(evidence.folder, CARD):
        return {}, ""
    try:
        with open_regular(evidence.folder / CARD) as handle:
            text = handle.read(CARD_LIMIT_BYTES).decode("utf-8", "replace")
    except OSError:
        return {}, ""
    _, heading, rest = text.partition("### Training hyperparameters")
    section = rest.partition("\n#")[0]
    return {str(m[1]): str(m[2]).strip() for m in _SETTING.finditer(section)}, CARD * bool(heading)
