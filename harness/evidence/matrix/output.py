"""Evidence from a run's output: lines of upstream libraries that mean something is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from harness.cell_folder import LOG_FILE
from harness.evidence.source import CheckpointEvidence, provides
from harness.registry import Missing, NotApplicable

LIST = Path(__file__).parents[2] / "lethal_warnings.yaml"
OWN = re.compile(r"[/\\]harness[/\\][\w/\\]+\.py:\d+: ")
"""A warning about the harness's own measuring: it says nothing of the run."""
BLOCK = 1 << 20
"""Characters that are read at once of a line that does not end."""
MAX_LINE = 300
"""Characters of a line that are kept."""


@dataclass(frozen=True, kw_only=True)
class LethalLine:
    """A line of the output that means something is wrong."""

    line: str
    """The line, shortened."""
    means: str
    """What it means."""
    modes: tuple[str, ...]
    """Failure modes."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a run printed."""

    lines: int
    """Lines that were read."""
    lethal: tuple[LethalLine, ...]
    """Those that mean something is wrong, each once."""


@provides("output")
def read_output(evidence: CheckpointEvidence) -> Output:
    """Search what the worker of a matrix cell printed."""
    folder = evidence.options.run_folder
    if folder is None:
        raise NotApplicable("no training run was watched: only mudpuppy-pressure keeps its output")
    path = folder / LOG_FILE
    if not path.is_file():
        raise Missing(f"{LOG_FILE} is not there")
    with path.open(encoding="utf-8", errors="replace") as handle:
        return search_lines(iter(lambda: handle.readline(BLOCK), ""))


def search_lines(lines: Iterable[str]) -> Output:
    """Return those of the lines that are on the list; one after the other, however many."""
    found: dict[str, LethalLine] = {}
    count = 0
    for line in lines:
        count += 1
        if OWN.search(line):
            continue
        for pattern, entry in _read_list():
            if pattern.search(line):
                made = LethalLine(
                    line=line.strip()[:MAX_LINE],
                    means=entry["means"],
                    modes=tuple(entry["modes"]),
                )
                found.setdefault(made.line, made)
    return Output(lines=count, lethal=tuple(found.values()))


@cache
def _read_list() -> tuple[tuple[re.Pattern[str], dict[str, Any]], ...]:
    entries = yaml.safe_load(LIST.read_text(encoding="utf-8"))
    return tuple((re.compile(one["pattern"], re.IGNORECASE), one) for one in entries)
