"""Record a run in the history while it goes on: who it is, each result once, how it ended.

The id of a run lies in its folder, in `run.json`. A run that was interrupted and is gone on with
keeps its id, and what its runner had finished but not yet recorded when it was killed is recorded
then. Once every cell has a result, running again in the same folder is another run.
"""

from __future__ import annotations

import json
import platform
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from harness.environment import DECISIVE
from harness.history import History
from harness.history_rows import RunRow
from harness.history_schema import BUSY_S, WRITE_S, explained
from harness.results import RESULT_FILE, CellResult, ResultError, read_result
from mudpuppy.files import write_json_atomic

RUN_FILE = "run.json"
"""File in a run's folder that says which run it is."""
RUN_SCHEMA_VERSION = 1
"""Version of that file."""


@dataclass(frozen=True, kw_only=True)
class RunStart:
    """What is known of a run before its first cell starts."""

    name: str
    """Name of the matrix."""
    matrix: str
    """The scenario file, as it was given."""
    kind: str = "matrix"
    """`matrix`, or `shrink` for the cells that look for a smallest failure."""
    plant: str | None = None
    """Bug to be planted."""
    model: str | None = None
    """Model instead of the one in the file."""
    environment: Mapping[str, Any]
    """Versions, platform and git revision."""
    is_rerun: bool = False
    """Whether finished cells were asked to run again, which makes it another run."""


@dataclass(frozen=True, kw_only=True)
class _RunFile:
    """What `run.json` says."""

    run_id: str
    name: str
    code: str
    plant: str | None
    model: str | None
    started: str
    finished: str | None = None
    schema_version: int = RUN_SCHEMA_VERSION


@dataclass
class Recorder:
    """Writes one run into a history; made for one call of the runner.

    SQLite may be busy or its disk full for a while. That is no reason to end a run of hours: what
    could not be written lies in the cells' folders, is tried again with the next result, and again
    when the folder is next used.
    """

    history: History
    """Where to write."""
    problem: str = ""
    """Why the last write failed; empty while all is well."""
    pending: list[CellResult] = field(default_factory=list)
    """Results that could not be written yet."""
    _folder: Path | None = None
    _file: _RunFile | None = None
    _key: int | None = None

    @property
    def advice(self) -> str:
        """What a person should know when something is not in the history in the end."""
        return (
            f"{self.history.path}: {len(self.pending)} results could not be recorded: "
            f"{self.problem}\n  hint: they are recorded when the same command is run again"
        )

    def recover(self, run_dir: Path) -> int:
        """Record what lies finished in a run's folder and is not in the history; return how much.

        Must be called before results are set aside to be made anew.

        Raises:
            MudpuppyError: the history cannot be read or written.
        """
        self.history.wait_at_most(BUSY_S)
        self._folder = run_dir
        self._file = _read_run_file(run_dir)
        if self._file is None:
            return 0
        known = {self._file.run_id: self.history.recorded(self._file.run_id)}
        number = 0
        for path in sorted(run_dir.glob(f"*/{RESULT_FILE}")):
            if path.parent.name not in known[self._file.run_id]:
                number += self._recover_one(path.parent, known)
        return number

    def begin(self, start: RunStart, kept: Sequence[CellResult], waiting: int) -> str:
        """Begin a run, or go on with the interrupted one of the folder; return its id.

        Args:
            start: what is known of it.
            kept: results of earlier runs that stand in this one.
            waiting: cells that will run; with none, and nothing interrupted, no run is begun.

        Raises:
            MudpuppyError: the history cannot be written.
            OSError: `run.json` cannot be written.
        """
        assert self._folder is not None, "recover comes first"
        code = identify_code(start.environment)
        if self._file is None or not _goes_on(self._file, start, code):
            if not waiting:
                return self._file.run_id if self._file else ""
            self._file = _RunFile(
                run_id=make_run_id(),
                name=start.name,
                code=code,
                plant=start.plant,
                model=start.model,
                started=_now(),
            )
            # The id lies in the folder before it is in the history: killed in between, the run is
            # gone on with under the same id.
            self._write_file()
        row = _make_row(self._file, start, self._folder)
        with explained(self.history.path):
            self._key = self.history.begin_run(row, dict(start.environment))
            self.history.keep(self._key, kept)
        self.history.wait_at_most(WRITE_S)
        return self._file.run_id

    def add(self, result: CellResult) -> None:
        """Record the verdict on a cell, after its `result.json` was written."""
        self.pending.append(result)
        self._flush()

    def add_attempt(self, result: CellResult) -> None:
        """Record one execution of a cell that is repeated within the run."""
        if self._key is None:
            return
        try:
            self.history.record_attempt(self._key, result)
        except sqlite3.Error as error:
            self.problem = str(error)

    def finish(self, verdict: str) -> None:
        """Note that every cell of the run has a result."""
        self.history.wait_at_most(BUSY_S)
        self._flush()
        if self._key is None or self._file is None or self.pending:
            return
        self._file = replace(self._file, finished=_now())
        try:
            self.history.finish_run(self._file.run_id, str(self._file.finished), verdict)
            self._write_file()
        except (sqlite3.Error, OSError) as error:
            self.problem = str(error)

    def _flush(self) -> None:
        """Write what waits to be written, oldest first, until something goes wrong."""
        if self._key is None:
            self.pending.clear()
            return
        try:
            while self.pending:
                self.history.record(self._key, self.pending[0])
                self.pending.pop(0)
            self.problem = ""
        except sqlite3.Error as error:
            self.problem = str(error)

    def _recover_one(self, folder: Path, known: dict[str, frozenset[str]]) -> bool:
        """Record a cell's result under the run that executed it, unless it is there already."""
        try:
            result = read_result(folder)
        except ResultError:  # torn, or of another version: the cell will be made anew
            return False
        if result is None or not result.run_id:
            return False
        if result.run_id not in known:
            known[result.run_id] = self.history.recorded(result.run_id)
        if result.cell_id in known[result.run_id]:
            return False
        with explained(self.history.path):
            self.history.record(self._find_or_make_run(result), result)
        return True

    def _find_or_make_run(self, result: CellResult) -> int:
        """Return the key of a result's run; a history that does not know it learns of it."""
        known = self.history.run(result.run_id)
        if known is not None:
            return known.key
        assert self._folder is not None
        file = self._file if self._file and self._file.run_id == result.run_id else None
        name = file.name if file else self._folder.name
        start = RunStart(name=name, matrix="", plant=result.plant, environment=result.environment)
        of_result = _RunFile(
            run_id=result.run_id,
            name=name,
            code=identify_code(result.environment),
            plant=result.plant,
            model=file.model if file else None,
            started=file.started if file else result.started,
            finished=file.finished if file else result.finished,
        )
        row = _make_row(of_result, start, self._folder)
        return self.history.begin_run(row, dict(result.environment))

    def _write_file(self) -> None:
        assert self._folder is not None
        assert self._file is not None
        write_json_atomic(self._folder / RUN_FILE, asdict(self._file))


def identify_code(environment: Mapping[str, Any]) -> str:
    """Return a hash of what decides a result: our sources, Python, the libraries' versions."""
    text = json.dumps({name: environment.get(name) for name in DECISIVE}, sort_keys=True)
    return sha256(text.encode()).hexdigest()[:12]


def make_run_id() -> str:
    """Return a new id: the time in UTC, so that ids sort, and four digits of chance."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def read_run_id(run_dir: Path) -> str | None:
    """Return the id of the run whose folder it is, or None."""
    file = _read_run_file(run_dir)
    return file.run_id if file else None


def _goes_on(file: _RunFile, start: RunStart, code: str) -> bool:
    """Return whether a start continues the run of the folder."""
    same = (file.name, file.code, file.plant, file.model)
    is_same = same == (start.name, code, start.plant, start.model)
    return file.finished is None and is_same and not start.is_rerun


def _read_run_file(run_dir: Path) -> _RunFile | None:
    """Return what `run.json` says; one that is missing or of another form says nothing."""
    with suppress(OSError, ValueError, TypeError):
        value = json.loads((run_dir / RUN_FILE).read_text(encoding="utf-8"))
        if isinstance(value, dict) and value.get("schema_version") == RUN_SCHEMA_VERSION:
            file = _RunFile(**value)
            texts = (file.run_id, file.name, file.code, file.started)
            return file if all(isinstance(text, str) for text in texts) else None
    return None


def _make_row(file: _RunFile, start: RunStart, folder: Path) -> RunRow:
    environment = start.environment
    return RunRow(
        key=0,
        run_id=file.run_id,
        name=file.name,
        kind=start.kind,
        matrix=start.matrix,
        folder=str(folder),
        started=file.started,
        finished=file.finished,
        verdict=None,
        revision=environment.get("git"),
        code=file.code,
        host=platform.node(),
        device=environment.get("device"),
        plant=file.plant,
        model=file.model,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
