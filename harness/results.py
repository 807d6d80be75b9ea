"""What is known of a cell and of a matrix when they end, and their versioned files."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from harness.findings import Status
from mudpuppy.errors import MudpuppyError
from mudpuppy.files import write_json_atomic

RESULT_SCHEMA_VERSION = 1
"""Version of `result.json`; a change that breaks a reader raises it."""
MATRIX_SCHEMA_VERSION = 1
"""Version of `report.json`."""
RESULT_FILE = "result.json"
"""Written last: a cell folder without it is half done."""


class ResultError(MudpuppyError):
    """A result file that cannot be read."""


class Outcome(StrEnum):
    """How a cell ended, finer than the four endings it is folded into."""

    PASSED = "passed"
    """It did what was expected, and its probes are as expected."""
    REJECTED_AS_EXPECTED = "rejected-as-expected"
    """Refused before anything was written, with the expected code."""
    MISSED_REJECTION = "missed-rejection"
    """It should have been refused and ran."""
    WRONG_REJECTION = "wrong-rejection"
    """Refused with another code, or refused although it should have run."""
    FAILED = "failed"
    """It ran, and something about the result is wrong."""
    CRASHED = "crashed"
    """The worker ended by a signal, an exception, or without its observations."""
    TIMEOUT = "timeout"
    """It was killed at its time limit."""
    OUT_OF_MEMORY = "out-of-memory"
    """The worker ran out of host or device memory."""
    LOST = "lost"
    """The process that started workers ended, and the cell with it, more often than is tried."""
    INFRASTRUCTURE = "infrastructure"
    """The machine failed, not the cell: a device that is gone, a folder that cannot be written."""
    FLAKY = "flaky"
    """Repeated with the same code, it passed and it did not."""
    NOT_RUN = "not-run"
    """It did not run; the message says why."""

    @property
    def status(self) -> Status:
        """The one of the four endings that it counts as (design, rule 4)."""
        return _STATUS[self]


_STATUS = {
    Outcome.PASSED: Status.PASSED,
    Outcome.REJECTED_AS_EXPECTED: Status.PASSED,
    Outcome.MISSED_REJECTION: Status.FAILED,
    Outcome.WRONG_REJECTION: Status.FAILED,
    Outcome.FAILED: Status.FAILED,
    Outcome.CRASHED: Status.CRASHED,
    Outcome.TIMEOUT: Status.CRASHED,
    Outcome.OUT_OF_MEMORY: Status.CRASHED,
    Outcome.LOST: Status.CRASHED,
    Outcome.INFRASTRUCTURE: Status.CRASHED,
    Outcome.FLAKY: Status.FAILED,
    Outcome.NOT_RUN: Status.SKIPPED,
}


@dataclass(frozen=True, kw_only=True)
class WorkerExit:
    """How the worker process of a cell ended."""

    exit_code: int | None
    """Its exit code; absent when a signal ended it."""
    signal: str | None = None
    """Name of the signal that ended it, such as SIGSEGV."""
    timed_out: bool = False
    """Whether it was killed at its time limit."""
    wall_s: float
    """Seconds from start to end."""
    peak_rss_bytes: int
    """Largest resident memory of the worker or one of its children."""
    cpu_s: float | None = None
    """Seconds of processor time of the worker and its children, where they were measured."""
    added_rss_bytes: int | None = None
    """The part of that which came on top of what it was forked with; absent if not forked."""
    killed_leftovers: int = 0
    """Processes it left behind, which were killed."""
    preload: str = "none"
    """What had been imported when it began: none, light or engine."""
    lost: bool = False
    """Whether it ended with the process that it was forked from, by no fault that is known."""
    lost_because: str = ""
    """Why it was lost, where it was for another reason."""

    @property
    def words(self) -> str:
        """The ending as a person says it."""
        if self.timed_out:
            return f"killed at its time limit after {self.wall_s:.1f} s"
        if self.lost:
            return self.lost_because or "lost with the process that it was forked from"
        if self.signal is not None:
            return f"ended by {self.signal}"
        return f"exit code {self.exit_code}"


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """Everything that is known of one finished cell, as written to `result.json`."""

    schema_version: int = RESULT_SCHEMA_VERSION
    """Version of this form."""
    cell_id: str
    """Hash of settings and expectation; name of the folder."""
    name: str
    """Readable name, unique in its matrix."""
    title: str
    """What was tried."""
    number: int
    """Place in the scenario file, from 1."""
    config: dict[str, Any]
    """Every setting of the run."""
    expect: dict[str, Any]
    """What had to come out."""
    trial: str = "training"
    """What was done with the settings."""
    options: dict[str, Any] = field(default_factory=dict)
    """Settings of the trial."""
    outcome: Outcome
    """How it ended, in detail."""
    status: Status
    """The same as one of the four endings."""
    message: str
    """The outcome in one sentence with its decisive fact."""
    findings: tuple[dict[str, Any], ...] = ()
    """Failed probes, as JSON (`harness.findings.ProbeResult`)."""
    probes: dict[str, int] = field(default_factory=dict)
    """Number of probes by ending."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Numbers of the run: steps, loss_before, loss_after, train_s and the like."""
    worker: WorkerExit | None = None
    """How the worker ended; absent when none was started."""
    log_tail: str = ""
    """End of the worker's output, kept for cells that did not pass."""
    plant: str | None = None
    """Bug that was planted into the worker on purpose."""
    attempt: int = 1
    """How many times the cell was run in this folder, this one included."""
    started: str = ""
    """Start in UTC, ISO 8601."""
    finished: str = ""
    """End in UTC, ISO 8601."""
    environment: dict[str, Any] = field(default_factory=dict)
    """Versions, platform and git revision."""
    run_id: str = ""
    """The run that executed it; empty outside of one that is kept in the history."""

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain JSON types; numbers that JSON cannot say become text."""
        return dict(_plain(asdict(self)))

    @classmethod
    def from_json(cls, value: Mapping[str, Any], source: str = "result") -> Self:
        """Rebuild a result.

        Raises:
            ResultError: another version, a missing or an unknown field.
        """
        values = _checked(cls, value, RESULT_SCHEMA_VERSION, source)
        try:
            result = TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            faults = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ResultError(f"{source}: {'; '.join(faults)}") from None
        if result.status is not result.outcome.status:
            why = f"the outcome {result.outcome} does not count as {result.status}"
            raise ResultError(f"{source}: {why}")
        return result


@dataclass(frozen=True, kw_only=True)
class SmallestFailure:
    """The smallest combination that fails as some cells do."""

    combination: str
    """Method, precision and features, as a person says them."""
    factors: tuple[str, ...]
    """What of it distinguishes it from plain LoRA in fp32: all of it is needed."""
    outcome: str
    """How it fails."""
    mark: str
    """Code of the first finding, or how the worker ended."""
    cell_id: str
    """Id of the cell that fails so, and name of its folder."""
    is_smallest: bool
    """False when the budget ran out before that was known."""
    ran: int
    """Extra cells that were run to find it."""
    looked_up: int
    """Cells whose result was already known."""
    cells: tuple[str, ...]
    """Names of the failing cells that it explains."""


@dataclass(frozen=True, kw_only=True)
class MatrixResult:
    """One run of a matrix, as written to `report.json`."""

    schema_version: int = MATRIX_SCHEMA_VERSION
    """Version of this form."""
    name: str
    """Name of the matrix."""
    matrix: str
    """The scenario file, as it was given."""
    folder: str
    """Folder of the run, as it was given."""
    verdict: Status
    """passed, failed, crashed, or skipped when nothing ran."""
    exit_code: int
    """0 as expected, 1 failures, 3 something could not be checked (design, rule 4)."""
    counts: dict[str, int]
    """Cells by ending."""
    cells: tuple[CellResult, ...]
    """One result per cell of the matrix, in matrix order."""
    plant: str | None = None
    """Bug that was planted on purpose."""
    model: str | None = None
    """Model that was given instead of the one in the file."""
    environment: dict[str, Any]
    """Versions, platform and git revision."""
    started: str
    """Start in UTC, ISO 8601."""
    finished: str
    """End in UTC, ISO 8601."""
    kept: tuple[str, ...] = ()
    """Names of the cells whose result is from an earlier run in the same folder."""
    run_id: str = ""
    """The run in the history; empty where none is kept."""
    coverage: dict[str, Any] | None = None
    """Which features meet in the cells that ran, where the matrix is a covering array."""
    audit: tuple[dict[str, Any], ...] = ()
    """What became of the rejected cells by force, where that was asked for."""
    smallest: tuple[SmallestFailure, ...] = ()
    """What failing cells were shrunk to, where that was asked for."""

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain JSON types; numbers that JSON cannot say become text."""
        return dict(_plain(asdict(self)))

    @classmethod
    def from_json(cls, value: Mapping[str, Any], source: str = "report") -> Self:
        """Rebuild a result.

        Raises:
            ResultError: another version, a missing or an unknown field.
        """
        values = _checked(cls, value, MATRIX_SCHEMA_VERSION, source)
        try:
            values["verdict"] = Status(values["verdict"])
            values["kept"] = tuple(values.get("kept", ()))
            values["audit"] = tuple(values.get("audit", ()))
            values["smallest"] = tuple(map(_read_smallest, values.get("smallest", ())))
            values["cells"] = tuple(
                CellResult.from_json(cell, f"{source}: cell {index}")
                for index, cell in enumerate(values["cells"])
            )
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise ResultError(f"{source}: {error}") from None


@dataclass(frozen=True)
class CellLabel:
    """What a progress display shows of a cell before it has a result."""

    cell_id: str
    """Id of the cell."""
    number: int
    """Place in the scenario file, from 1."""
    title: str
    """What is tried."""


@dataclass(frozen=True)
class Started:
    """Told to a listener: the worker of a cell was started."""

    cell_id: str
    """Id of the cell."""


@dataclass(frozen=True)
class Finished:
    """Told to a listener: a cell has its result."""

    result: CellResult
    """The result."""
    kept: bool = False
    """Whether it is from an earlier run, or says why the cell does not run."""


Event = Started | Finished


def judge_matrix(statuses: Iterable[Status]) -> tuple[Status, int, dict[str, int]]:
    """Fold the endings of cells into a verdict, an exit code and counts.

    A crash outweighs a failure: with one, the other results are not the whole truth.
    """
    seen = Counter(statuses)
    counts = {status.value: seen[status] for status in Status}
    if seen[Status.CRASHED]:
        return Status.CRASHED, 3, counts
    if seen[Status.FAILED]:
        return Status.FAILED, 1, counts
    if seen[Status.PASSED]:
        return Status.PASSED, 0, counts
    return Status.SKIPPED, 3, counts


def write_result(folder: Path, result: CellResult) -> None:
    """Write a cell's result, atomically; the last thing that happens in its folder."""
    write_json_atomic(folder / RESULT_FILE, result.to_json())


def read_result(folder: Path, name: str = RESULT_FILE) -> CellResult | None:
    """Return the result of a finished cell, or None where there is none.

    Raises:
        ResultError: there is one, and it is torn or of another version.
    """
    path = folder / name
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ResultError(f"{path}: cannot be read: {error}") from None
    return CellResult.from_json(_parse(text, path), str(path))


def read_matrix_result(path: Path) -> MatrixResult:
    """Return the result of a matrix from its `report.json`.

    Raises:
        ResultError: it is torn or of another version.
    """
    return MatrixResult.from_json(_parse(path.read_text(encoding="utf-8"), path), str(path))


def _read_smallest(value: Mapping[str, Any]) -> SmallestFailure:
    lists = {name: tuple(value[name]) for name in ("factors", "cells")}
    return SmallestFailure(**{**value, **lists})


def _parse(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ResultError(f"{path}: is not JSON: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _checked(form: type, value: Any, version: int, source: str) -> dict[str, Any]:
    """Return a copy of the value after its version and its keys were checked."""
    if not isinstance(value, dict):
        raise ResultError(f"{source}: expected an object, found {type(value).__name__}")
    found = value.get("schema_version")
    if found != version:
        raise ResultError(
            f"{source}: schema_version is {found!r}, this version reads {version}",
            hint="read it with the version of mudpuppy that wrote it",
        )
    unknown = sorted(set(value) - {one.name for one in fields(form)})
    if unknown:
        raise ResultError(f"{source}: unknown fields: {', '.join(unknown)}")
    return dict(value)
