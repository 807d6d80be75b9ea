"""The SQLite file of the history: its tables, its migrations, and how it is opened.

Write-ahead logging lets readers read while the one writer writes, and a writer that is killed at
any moment leaves what it had committed and nothing else. A migration and its version are one
transaction.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from mudpuppy.errors import MudpuppyError, UsageError

APPLICATION_ID = 0x6D756470
"""Number in the header that says whose file it is; the letters are `mudp`."""
BUSY_S = 30.0
"""Seconds to wait for another writer before a run and after it."""
WRITE_S = 2.0
"""Seconds to wait for another writer while a run goes on, whose time limits wait as well."""

Migration = tuple[str, ...]
"""Statements that lead from one version to the next."""

MIGRATIONS: tuple[Migration, ...] = (
    (
        """CREATE TABLE runs (
            run_key INTEGER PRIMARY KEY,
            run_id TEXT NOT NULL UNIQUE,
            name TEXT NOT NULL,
            kind TEXT NOT NULL DEFAULT 'matrix',
            matrix TEXT NOT NULL DEFAULT '',
            folder TEXT NOT NULL DEFAULT '',
            started TEXT NOT NULL,
            finished TEXT,
            verdict TEXT,
            revision TEXT,
            code TEXT NOT NULL,
            host TEXT NOT NULL DEFAULT '',
            device TEXT,
            plant TEXT,
            model TEXT,
            environment TEXT NOT NULL DEFAULT '{}'
        )""",
        "CREATE INDEX runs_by_code ON runs (code)",
        "CREATE INDEX runs_by_name ON runs (name)",
        """CREATE TABLE cells (
            cell_key INTEGER PRIMARY KEY,
            cell_id TEXT NOT NULL UNIQUE,
            name TEXT NOT NULL,
            title TEXT NOT NULL,
            settings TEXT NOT NULL,
            expectation TEXT NOT NULL
        )""",
        "CREATE INDEX cells_by_name ON cells (name)",
        # The verdict on a cell in a run. Exactly one, whatever happened to whom in between.
        """CREATE TABLE results (
            result_key INTEGER PRIMARY KEY,
            run_key INTEGER NOT NULL REFERENCES runs,
            cell_key INTEGER NOT NULL REFERENCES cells,
            attempt INTEGER NOT NULL,
            outcome TEXT NOT NULL,
            status TEXT NOT NULL,
            message TEXT NOT NULL,
            ending TEXT,
            started TEXT NOT NULL,
            finished TEXT NOT NULL,
            wall_s REAL,
            cpu_s REAL,
            peak_rss_bytes INTEGER,
            device_bytes INTEGER,
            metrics TEXT NOT NULL DEFAULT '{}',
            UNIQUE (run_key, cell_key)
        )""",
        "CREATE INDEX results_by_cell ON results (cell_key, run_key, status, wall_s)",
        "CREATE INDEX results_by_status ON results (run_key, status)",
        # What stood in a run because an earlier one had found it out; points, repeats nothing.
        """CREATE TABLE kept (
            run_key INTEGER NOT NULL REFERENCES runs,
            cell_key INTEGER NOT NULL REFERENCES cells,
            result_key INTEGER NOT NULL REFERENCES results,
            PRIMARY KEY (run_key, cell_key)
        ) WITHOUT ROWID""",
        """CREATE VIEW standing AS
            SELECT run_key, cell_key, result_key, 0 AS kept FROM results
            UNION ALL
            SELECT run_key, cell_key, result_key, 1 AS kept FROM kept""",
        # Every single execution of a cell that was repeated within one run.
        """CREATE TABLE attempts (
            run_key INTEGER NOT NULL REFERENCES runs,
            cell_key INTEGER NOT NULL REFERENCES cells,
            attempt INTEGER NOT NULL,
            outcome TEXT NOT NULL,
            status TEXT NOT NULL,
            message TEXT NOT NULL,
            started TEXT NOT NULL,
            wall_s REAL,
            peak_rss_bytes INTEGER,
            PRIMARY KEY (run_key, cell_key, attempt)
        ) WITHOUT ROWID""",
        """CREATE TABLE findings (
            result_key INTEGER NOT NULL REFERENCES results,
            place INTEGER NOT NULL,
            code TEXT NOT NULL,
            name TEXT NOT NULL,
            subject TEXT NOT NULL,
            severity TEXT,
            message TEXT NOT NULL,
            PRIMARY KEY (result_key, place)
        ) WITHOUT ROWID""",
    ),
    (  # what stands in a run without looking every row up a second time
        "DROP VIEW standing",
        """CREATE VIEW standing AS
            SELECT run_key, cell_key, result_key, outcome, status, wall_s, peak_rss_bytes
                FROM results
            UNION ALL
            SELECT k.run_key, k.cell_key, k.result_key, r.outcome, r.status, r.wall_s,
                r.peak_rss_bytes FROM kept k JOIN results r USING (result_key)""",
    ),
)
"""How each version comes out of the one before it; `PRAGMA user_version` counts them."""


_Word = TypeVar("_Word", bound=StrEnum)


class HistoryError(UsageError):
    """A history file that is not there, is somebody else's, or is from a newer version."""


def read_word(kind: type[_Word], text: object) -> _Word:
    """Return a word of the history as what it stands for.

    Raises:
        HistoryError: this version knows no such word.
    """
    try:
        return kind(str(text))
    except ValueError:
        name = kind.__name__.lower()
        raise HistoryError(
            f"the history holds the {name} '{text}', which is none that this version knows",
            hint="another program wrote it: move the file away, or name another with --history",
        ) from None


def open_history(path: Path, *, create: bool) -> sqlite3.Connection:
    """Open a history and bring it to the newest version.

    Transactions are explicit: the connection commits every statement that is not inside one.

    Args:
        path: the file.
        create: make it, and its folder, where there is none.

    Raises:
        HistoryError: it is missing, cannot be opened, is no history, or a newer version wrote it.
    """
    if not create and not path.is_file():
        raise HistoryError(
            f"there is no history at {path}",
            hint="run a matrix first, or name another file with --history",
        )
    try:
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(_uri(path), uri=True, timeout=BUSY_S, isolation_level=None)
    except (OSError, sqlite3.OperationalError) as error:
        raise HistoryError(f"{path}: cannot be opened: {error}") from None
    try:
        _prepare(connection, path)
    except sqlite3.OperationalError as error:  # locked, a full disk: the file itself is sound
        connection.close()
        raise HistoryError(
            f"{path}: cannot be used now: {error}",
            hint="try again when the disk has room and nobody else holds it; it need not go",
        ) from None
    except sqlite3.DatabaseError as error:
        connection.close()
        raise HistoryError(
            f"{path}: is no history of mudpuppy: {error}",
            hint="name another file with --history, or move this one away",
        ) from None
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Write all of a block or nothing of it, waiting for other writers first."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # some errors have ended it by themselves
            connection.execute("ROLLBACK")
        raise


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what SQLite says while a history is used into an error that names the file.

    Raises:
        MudpuppyError: the file is damaged, or somebody holds it for too long.
    """
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise MudpuppyError(
            f"{path}: the history cannot be used: {error}",
            hint=f"check it with: sqlite3 {path} 'PRAGMA integrity_check'",
        ) from None


def _uri(path: Path) -> str:
    """Return the address; a file in a place that cannot be written is read as it lies there."""
    address = f"file:{quote(str(path.resolve()))}"
    folder = path.resolve().parent
    if path.exists() and not (os.access(path, os.W_OK) and os.access(folder, os.W_OK)):
        return f"{address}?mode=ro&immutable=1"
    return address


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Check whose file it is, switch the write-ahead log on, and migrate."""
    version = _check_owner(connection, path)
    if version < len(MIGRATIONS):
        connection.execute("PRAGMA journal_mode = WAL")
        migrate(connection, path)
    # With WAL this may lose the newest results to a power cut, never to a kill; their result.json
    # files are looked at again when the run is gone on with.
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _check_owner(connection: sqlite3.Connection, path: Path) -> int:
    """Return the version of the file.

    Raises:
        HistoryError: it is another program's, or from a newer version.
    """
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if owner != APPLICATION_ID and (owner or version or tables):
        raise HistoryError(
            f"{path}: is a database of another program",
            hint="name another file with --history",
        )
    if version > len(MIGRATIONS):
        raise HistoryError(
            f"{path}: has version {version}, and this mudpuppy knows versions up to "
            f"{len(MIGRATIONS)}",
            hint="read it with the version of mudpuppy that wrote it, or name another file",
        )
    return int(version)


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring a history to the newest version, one version a transaction.

    Raises:
        HistoryError: a newer mudpuppy was faster and has left this version behind.
    """
    while True:
        with transaction(connection):
            version = _check_owner(connection, path)  # another process may have been faster
            if version == len(MIGRATIONS):
                return
            for statement in MIGRATIONS[version]:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {version + 1}")
