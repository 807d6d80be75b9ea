"""What a curriculum has done so far: phases in order, written atomically after each of them.

The driver always tells its whole story from the beginning; a phase that is written here is taken as
it was, and the first one that is not is done. So a run that was killed at any moment goes on where
it was, by the same code that an undisturbed one runs.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mudpuppy.errors import OutputError
from mudpuppy.files import write_json_atomic

STATE_FILE = "state.json"
STATE_SCHEMA_VERSION = 1
PHASES = "phases"
"""Folder with a folder for each phase."""
LOGS = "logs"
"""Folder with what each phase printed."""
PATIENCE_S = 2.0
"""Seconds to wait for a folder: what a killed run had started dies after it."""
_LOCK = ".lock"
_OURS = {STATE_FILE, PHASES, LOGS, _LOCK, "report.md", "report.json", "final"}


@dataclass(frozen=True)
class Point:
    """A state of the model: whole weights and, where one is not merged yet, an adapter on them."""

    model: str
    """Folder, hub id or name of an embedded model."""
    adapter: str | None = None
    """Folder."""

    @property
    def folder(self) -> Path:
        """What is asked: the adapter's folder, or the model's."""
        return Path(self.adapter or self.model)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase that has ended."""

    id: str
    """Unique, such as `03.dpo.gate`; also its folder."""
    outcome: dict[str, Any]
    """What came out, in JSON types; its form depends on the kind of phase."""
    seconds: float
    """How long it took."""


@dataclass
class State:
    """The phases of a run, and where they are kept."""

    output: Path
    """Folder of the run."""
    identity: str
    """Hash of what is run."""
    phases: dict[str, Phase] = field(default_factory=dict)
    """By id, in the order in which they ended."""
    after_phase: Callable[[str], None] = field(default=lambda _: None)
    """Called once a phase is written."""

    def folder(self, name: str) -> Path:
        """Return the folder of a phase."""
        return self.output / PHASES / name

    def log(self, name: str) -> Path:
        """Return the file that a phase prints to."""
        return self.output / LOGS / f"{name}.log"

    def run(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the outcome of a phase: as it is written, or by doing its work now.

        What a killed run left in its folder is removed first.
        """
        if name in self.phases:
            return self.phases[name].outcome
        shutil.rmtree(self.folder(name), ignore_errors=True)
        self.log(name).unlink(missing_ok=True)
        started = time.monotonic()
        outcome = json.loads(json.dumps(work(), allow_nan=False))
        seconds = round(time.monotonic() - started, 3)
        self.phases[name] = Phase(id=name, outcome=outcome, seconds=seconds)
        self.write()
        self.after_phase(name)
        return dict(outcome)

    def write(self) -> None:
        """Write `state.json`, atomically."""
        value = {
            "schema_version": STATE_SCHEMA_VERSION,
            "identity": self.identity,
            "phases": [asdict(phase) for phase in self.phases.values()],
        }
        write_json_atomic(self.output / STATE_FILE, value)

    def place(self, path: Path) -> str:
        """Return a path as it is written: relative where it lies in the run's folder."""
        inside = path.is_relative_to(self.output)
        return str(path.relative_to(self.output)) if inside else str(path)

    def write_point(self, point: Point) -> dict[str, Any]:
        """Return a point as it is written."""
        adapter = None if point.adapter is None else self.place(Path(point.adapter))
        return {"model": self.place(Path(point.model)), "adapter": adapter}


def read_state(output: Path) -> State | None:
    """Return the state that lies in a folder, or None where there is none.

    Raises:
        OutputError: it cannot be read, or another version wrote it.
    """
    path = output / STATE_FILE
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        version = value["schema_version"]
        if version != STATE_SCHEMA_VERSION:
            raise ValueError(f"schema version {version} is not {STATE_SCHEMA_VERSION}")
        phases = [Phase(**one) for one in value["phases"]]
        identity = str(value["identity"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = "name another folder with --output, or remove this one"
        raise OutputError(f"{path} cannot be used: {error}", hint=hint) from None
    return State(output=output, identity=identity, phases={one.id: one for one in phases})


@contextmanager
def open_state(output: Path, identity: str) -> Iterator[State]:
    """Yield the state of a run that begins or goes on, and keep every other run out meanwhile.

    Raises:
        OutputError: the folder is another curriculum's, holds something else, is in use, or cannot
            be written.
    """
    output = output.absolute()
    try:
        output.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(output / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(
            f"the output folder {output} cannot be used: {reason}",
            hint="name a folder that you may write with --output",
        ) from None
    try:
        _take(descriptor, output)
        yield _begin(output, identity)
    finally:
        os.close(descriptor)


def _take(descriptor: int, output: Path) -> None:
    """Take the lock of a folder; a child of a run that was just killed may hold it for a moment.

    Raises:
        OutputError: another run holds it.
    """
    ends = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > ends:
                raise OutputError(
                    f"the output folder {output} is in use by another run", hint="wait for it"
                ) from None
            time.sleep(0.05)
        else:
            return


def _begin(output: Path, identity: str) -> State:
    state = read_state(output)
    if state is None:
        strange = sorted({path.name for path in output.iterdir()} - _OURS)
        if strange:
            raise OutputError(
                f"the output folder {output} is not empty: {', '.join(strange[:5])}",
                hint="name another folder with --output",
            )
        state = State(output=output, identity=identity)
        state.write()
    if state.identity != identity:
        raise OutputError(
            f"{output} holds the run of another curriculum: its file, its data or its model "
            "have changed since",
            hint="name another folder with --output, or put back what was changed to go on",
        )
    return state
