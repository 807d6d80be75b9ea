"""What the history answers with: runs, results, what stood last, and how two runs differ."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from harness.findings import Status
from harness.results import Outcome

BAD = (Status.FAILED, Status.CRASHED)
"""Endings that somebody has to look at."""


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One run of a matrix."""

    key: int
    """Place in the history; later runs have larger ones."""
    run_id: str
    """Its id, which begins with the time of its start in UTC."""
    name: str
    """Name of the matrix."""
    kind: str
    """`matrix`, or `shrink` for the cells that looked for a smallest failure."""
    matrix: str
    """The scenario file, as it was given."""
    folder: str
    """Folder of the run."""
    started: str
    """Start in UTC, ISO 8601."""
    finished: str | None
    """End in UTC; absent while it runs and when it was interrupted and not gone on with."""
    verdict: str | None
    """How it ended; absent like `finished`."""
    revision: str | None
    """Git revision, with `+changes` when the tree differed."""
    code: str
    """Hash of what decides a result: sources, Python and the versions of the libraries."""
    host: str
    """Machine of the driver."""
    device: str | None
    """Device that was asked for, where one was."""
    plant: str | None
    """Bug that was planted on purpose."""
    model: str | None
    """Model that was given instead of the one in the file."""
    counts: dict[str, int] = field(default_factory=dict)
    """Cells by ending, those kept from an earlier run included."""


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """What came out of one cell in one run."""

    run_id: str
    """The run that executed it."""
    revision: str | None
    """Git revision of that run."""
    plant: str | None
    """Bug that was planted into that run."""
    cell_id: str
    """Id of the cell."""
    name: str
    """Name of the cell."""
    title: str
    """What was tried."""
    attempt: int
    """How many times the cell had been run in its folder, this one included."""
    outcome: Outcome
    """How it ended, in detail."""
    status: Status
    """The same as one of the four endings."""
    message: str
    """The outcome in one sentence."""
    ending: str | None
    """How the worker ended: a signal's name, an exit code, or `time limit`."""
    started: str
    """Start in UTC, ISO 8601."""
    wall_s: float | None
    """Seconds the worker took; absent when none was started."""
    cpu_s: float | None
    """Seconds of processor time, where they were measured."""
    peak_rss_bytes: int | None
    """Largest resident memory."""
    device_bytes: int | None
    """Largest device memory, where it was measured."""
    codes: tuple[str, ...] = ()
    """Codes of its findings, worst first."""


@dataclass(frozen=True, kw_only=True)
class LastResult:
    """What is known of a cell before it runs again: its last result that was one."""

    status: Status
    """How it ended; never skipped."""
    wall_s: float | None
    """Seconds it took."""


class Kind(StrEnum):
    """How a cell differs between two runs, in the order in which people want to read it."""

    NEW_FAILURE = "new failure"
    """It fails now; before, it passed, did not run or was not there."""
    FLAKY = "flaky"
    """The same code has passed and failed it."""
    STILL_FAILING = "still failing"
    """It failed before and fails now."""
    FIXED = "fixed"
    """It failed before and passes now."""
    SLOWER = "slower"
    """It takes longer than its past explains."""
    BIGGER = "bigger"
    """It needs more memory than its past explains."""
    NO_LONGER_RUN = "no longer run"
    """It ran before, and did not run now."""
    APPEARED = "appeared"
    """It was not there before or did not run, and passes."""
    DISAPPEARED = "disappeared"
    """It was there before."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One way in which one cell differs."""

    kind: Kind
    """In which way."""
    cell_id: str
    """Id of the cell."""
    name: str
    """Name of the cell."""
    title: str
    """What is tried."""
    before: Outcome | None
    """Outcome in the old run; absent when the cell was not in it."""
    after: Outcome | None
    """Outcome in the new run; absent when the cell is not in it."""
    what: str
    """The difference in one sentence with its decisive numbers."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs side by side."""

    old: RunRow
    """The run that is compared with."""
    new: RunRow
    """The run that is looked at."""
    compared: int
    """Cells that stand in both."""
    unchanged: int
    """Those of them about which nothing is to be said."""
    changes: tuple[Change, ...]
    """Everything that differs, by kind and then in order of names."""
    environment: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """Versions and the like that are not the same, each before and after."""

    def of(self, *kinds: Kind) -> tuple[Change, ...]:
        """Return the changes of some kinds."""
        return tuple(change for change in self.changes if change.kind in kinds)

    @property
    def exit_code(self) -> int:
        """1 when a cell fails that did not fail before, a flaky one included; else 0."""
        return int(
            any(
                change.kind is Kind.NEW_FAILURE
                or (change.kind is Kind.FLAKY and _fails_anew(change))
                for change in self.changes
            )
        )


def _fails_anew(change: Change) -> bool:
    """Return whether a cell fails now and did not fail before."""
    is_bad = change.after is not None and change.after.status in BAD
    return is_bad and (change.before is None or change.before.status not in BAD)
