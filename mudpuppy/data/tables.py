"""Rows of Parquet files, of folders that `datasets` saved, and of datasets on the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mudpuppy.data.problems import LineProblem
from mudpuppy.data.rows import Row, Rows, unreadable
from mudpuppy.errors import DatasetError, clip, near_names

if TYPE_CHECKING:
    from collections.abc import Iterable

BATCH_ROWS = 256
"""Rows that are turned into Python values at a time."""
_HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+?)(?::([\w.-]+))?")
_SPLIT_OF_PATH = re.compile(r"(.+):([\w.-]+)")


def open_parquet(path: Path) -> Rows:
    """Open a Parquet file.

    Raises:
        DatasetError: it is no Parquet file, or a damaged one.
    """
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise unreadable(error, str(path)) from None

    def batches() -> Iterator[Any]:
        with file:
            yield from file.iter_batches(batch_size=BATCH_ROWS)

    return Rows(
        where=str(path),
        folder=path.parent,
        unit="row",
        container="Parquet",
        rows=_rows(batches(), str(path)),
    )


def _rows(batches: Iterable[Any], where: str) -> Iterator[Row]:
    """Yield the rows of Arrow tables."""
    import pyarrow

    number = 0
    try:
        for batch in batches:
            try:
                values = batch.to_pylist()
            except UnicodeDecodeError:
                values = [_decoded(batch.slice(index, 1)) for index in range(batch.num_rows)]
            for value in values:
                number += 1
                bad = isinstance(value, LineProblem)
                yield Row(number, None if bad else value, value if bad else None)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise unreadable(error, where) from None


def _decoded(row: Any) -> Any:
    """Return one row as a dict, or the problem that its text is not UTF-8."""
    try:
        return row.to_pylist()[0]
    except UnicodeDecodeError as error:
        return LineProblem(f"is not UTF-8: byte 0x{error.object[error.start]:02x} in a text")


def hub_name(source: str) -> tuple[str, str | None]:
    """Return name and split of `org/name` or `PATH:SPLIT`; an empty name for anything else."""
    found = _HUB_NAME.fullmatch(source) or _SPLIT_OF_PATH.fullmatch(source)
    return (found[1], found[2]) if found else ("", None)


def open_saved(folder: Path, split: str | None) -> Rows:
    """Open a folder that `datasets` saved with `save_to_disk`.

    Raises:
        DatasetError: it is damaged, or holds several splits and none was named.
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # noqa: BLE001 - what is damaged breaks `datasets` in many ways
        raise unreadable(error, str(folder)) from None
    table = _one_split(loaded, str(folder), split)
    return _table_rows(table, str(folder), folder, "saved dataset")


def open_hub(name: str, split: str | None) -> Rows:
    """Open a dataset of the hub, or of its cache where the hub cannot be reached.

    Raises:
        DatasetError: there is no such dataset, it cannot be reached, or its split is not told.
    """
    import datasets

    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # noqa: BLE001 - network, hub and cache fail in many ways
        reason = clip(f"{type(error).__name__}: {error}")
        raise DatasetError(
            f"no such file, and not to be had from the hub: {reason}",
            file=name,
            hint="check the path or the name; without a network only cached datasets can be used",
        ) from None
    where = name if split is None else f"{name}:{split}"
    return _table_rows(_one_split(loaded, name, split), where, Path(), "hub dataset")


def _one_split(loaded: Any, where: str, split: str | None) -> Any:
    """Return the table of the wanted split: the named one, the only one, or `train`."""
    if not hasattr(loaded, "keys"):
        if split is not None:
            raise DatasetError(f"has no splits, so no '{split}'", file=where)
        return loaded
    names = list(loaded.keys())
    wanted = split or (names[0] if len(names) == 1 else "train")
    if wanted not in names:
        near = near_names(wanted, names) if split else ""
        raise DatasetError(
            f"has no split '{wanted}'{near}; its splits are {', '.join(names) or 'none'}",
            file=where,
            hint=f"name one: {where}:{names[0]}" if names else "",
        )
    return loaded[wanted]


def _table_rows(table: Any, where: str, folder: Path, container: str) -> Rows:
    """Return the rows as Arrow holds them, so that images stay bytes and are not decoded."""
    batches = table.with_format("arrow").iter(batch_size=BATCH_ROWS)
    return Rows(
        where=where, folder=folder, unit="row", container=container, rows=_rows(batches, where)
    )
