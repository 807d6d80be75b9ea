"""What an opened dataset is: rows one after the other, and where they come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mudpuppy.data.problems import LineProblem
from mudpuppy.errors import DatasetError, clip


@dataclass(frozen=True)
class Row:
    """One row of a dataset, or why it could not even be parsed."""

    number: int
    """1-based line of the file; the row where there are no lines."""
    value: Any
    problem: LineProblem | None = None


@dataclass(frozen=True, kw_only=True)
class Rows:
    """An opened dataset."""

    where: str
    """The file, folder or hub name, as errors name it."""
    folder: Path
    """Where relative paths of images start."""
    unit: str
    """What the numbers count: `line` or `row`."""
    container: str
    """What holds the rows: `JSONL`, `JSON`, `Parquet`, `saved dataset` or `hub dataset`."""
    rows: Iterator[Row]


def unreadable(error: Exception, file: str) -> DatasetError:
    """Return the error for a file that the system or a library does not read."""
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
    return DatasetError(f"cannot be read: {clip(reason or type(error).__name__)}", file=file)
