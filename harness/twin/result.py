"""The twin's findings as a file, from its phase to the leader (no torch)."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter

from harness.observations_twin import TwinFacts
from mudpuppy.files import write_json_atomic

RECORDING_FILE = "recording.pt"
"""The recording in the folder of the cell, until the twin has read it."""
TWIN_FILE = "twin.json"
"""What the twin found, in the folder of the cell."""
_ADAPTER = TypeAdapter(TwinFacts)


def write_twin(folder: Path, facts: TwinFacts) -> None:
    """Write what the twin found into the folder of the cell."""
    write_json_atomic(folder / TWIN_FILE, asdict(facts))


def read_twin(folder: Path) -> TwinFacts:
    """Return what the twin found.

    Raises:
        OSError: there is no such file.
        ValueError: the file is damaged.
    """
    return _ADAPTER.validate_json((folder / TWIN_FILE).read_bytes())
