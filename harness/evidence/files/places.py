"""Where a folder may lie that a checkpoint names: beside it, then in the current folder."""

from __future__ import annotations

from pathlib import Path

from harness.evidence.files.header_only import is_header_only
from harness.evidence.files.jsonfile import is_path


def list_places(name: str, folder: Path) -> tuple[Path, ...]:
    """Return where `name`, found in a file of `folder`, may lie, the surest place first.

    What was fetched from a hub names nothing of this machine: only what lies in it is taken.
    """
    if not name or not is_path(name):
        return ()
    if is_header_only(folder):
        inside = (folder / name).resolve()
        return (folder / name,) if inside.is_relative_to(folder.resolve()) else ()
    if Path(name).is_absolute():
        return (Path(name),)
    return folder.parent / name, folder / name, Path(name)


def is_of_current_folder(place: Path) -> bool:
    """Whether a place was found from the current folder, and not beside the checkpoint."""
    return not place.is_absolute()
