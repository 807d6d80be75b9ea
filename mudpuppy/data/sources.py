"""Find the rows of a dataset, wherever it lies: a JSONL, JSON or Parquet file, a folder, the hub.

No torch: a broken dataset is reported before anything heavy is imported.
"""

from __future__ import annotations

from pathlib import Path

from mudpuppy.data.jsonrows import is_one_value, open_json, open_lines
from mudpuppy.data.rows import Rows, unreadable
from mudpuppy.data.tables import hub_name, open_hub, open_parquet, open_saved
from mudpuppy.errors import DatasetError, near_names

SUFFIXES = (".jsonl", ".json", ".parquet")
"""Files that a folder is searched for."""
_PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2"}
"""First bytes of compressed files."""
_OTHER_TABLES = (".csv", ".tsv", ".txt", ".xlsx", ".arrow")


def open_rows(source: Path | str) -> Rows:
    """Open a dataset by its path or hub name; rows are read as they are asked for.

    Raises:
        DatasetError: there is nothing, or nothing that can be read.
    """
    path = Path(source)
    try:
        if path.is_dir():
            return _open_folder(path)
        if path.exists():
            return _open_file(path)
    except (OSError, ValueError) as error:
        raise unreadable(error, str(source)) from None
    name, split = hub_name(str(source))
    if split and Path(name).is_dir():
        return open_saved(Path(name), split)
    if name and not _looks_local(Path(name)):
        return open_hub(name, split)
    raise _absent(path)


def _looks_local(path: Path) -> bool:
    """Whether a missing path was meant as a path, though it reads like a hub name."""
    is_file = path.suffix in (*SUFFIXES, *_OTHER_TABLES)
    return is_file or path.parent.is_dir()


def _absent(path: Path) -> DatasetError:
    beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    return DatasetError(
        f"cannot be read: No such file or directory{near_names(path.name, beside)}",
        file=str(path),
        hint="name a JSONL, JSON or Parquet file, a folder with one, or a hub dataset (org/name)",
    )


def _open_folder(folder: Path) -> Rows:
    """Open what a folder holds: a dataset saved by `datasets`, or one data file."""
    names = {path.name for path in folder.iterdir()}
    if "dataset_dict.json" in names or {"dataset_info.json", "state.json"} <= names:
        return open_saved(folder, None)
    found = sorted(
        path
        for path in folder.iterdir()
        if path.suffix in SUFFIXES and not path.name.startswith((".", "dataset_info"))
    )
    if not found:
        raise DatasetError(
            "is a folder with no JSONL, JSON or Parquet file in it; name the file",
            file=str(folder),
        )
    if len(found) > 1:
        listed = ", ".join(path.name for path in found[:6])
        raise DatasetError(
            f"is a folder with {len(found)} data files: {listed}",
            file=str(folder),
            hint=f"name one of them, such as {found[0]}",
        )
    return _open_file(found[0])


def _open_file(path: Path) -> Rows:
    """Open a file by its first bytes and, where they leave it open, its name."""
    if not path.is_file():  # it may never end, and is read twice
        raise DatasetError("is no regular file", file=str(path), hint="save it as a file")
    with path.open("rb") as handle:
        head = handle.read(4096)
    packed = next((name for magic, name in _PACKED.items() if head.startswith(magic)), None)
    if packed:
        raise DatasetError(f"is compressed ({packed})", file=str(path), hint="unpack it first")
    if head.startswith(b"PAR1") or path.suffix == ".parquet":
        return open_parquet(path)
    if path.suffix in _OTHER_TABLES:
        raise DatasetError(
            f"is a {path.suffix[1:].upper()} file; JSONL, JSON or Parquet is expected",
            file=str(path),
            hint='write one JSON object a line, such as {"text": "..."}',
        )
    if is_one_value(path, head):
        return open_json(path)
    return open_lines(path)
