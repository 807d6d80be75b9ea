"""Find the run that a person means: an id, the beginning of one, `last`, `last~1`, a folder."""

from __future__ import annotations

import re
from pathlib import Path

from harness.history_queries import HistoryQueries
from harness.history_rows import RunRow
from harness.history_schema import HistoryError
from harness.recorder import read_run_id
from mudpuppy.errors import near_names

WORDS = "an id, the beginning of one, last, last~1, or the folder of a run"
"""What a run may be called."""


def find_run(history: HistoryQueries, word: str, *, name: str | None = None) -> RunRow:
    """Return the run that a word means.

    Args:
        history: where to look.
        word: see `WORDS`. `last` is the newest run of a matrix in which nothing was planted, and
            `last~2` the second one of the same matrix before it.
        name: matrix that `last` is about; by default that of the newest run.

    Raises:
        HistoryError: there is no such run (with the near ids), or several begin like this.
    """
    match = re.fullmatch(r"last(?:~(\d{1,9}))?", word)
    if match:
        return _find_last(history, int(match[1] or 0), name)
    run = history.run(word)
    if run is not None:
        return run
    if word and Path(word).is_dir():
        return _find_by_folder(history, Path(word))
    ids = history.runs_like(word) if word else ()
    if len(ids) == 1:
        return _known(history, ids[0])
    if ids:
        shown = ", ".join(ids[-5:])
        raise HistoryError(f"{len(ids)} runs begin with '{word}': {shown}", hint="type more of it")
    known = [row.run_id for row in history.runs(limit=200)]
    raise HistoryError(
        f"no run in {history.path} is called '{word}'{near_names(word, known)}",
        hint=f"a run is {WORDS}; see: mudpuppy-pressure history",
    )


def _find_last(history: HistoryQueries, back: int, name: str | None) -> RunRow:
    if name is None:
        newest = history.honest_runs(limit=1)
        name = newest[0].name if newest else None
    runs = history.honest_runs(name=name, limit=back + 1)
    if len(runs) > back:
        return _known(history, runs[back].run_id)
    of = f" of '{name}'" if name else ""
    raise HistoryError(
        f"{history.path}: 'last{f'~{back}' if back else ''}' needs {back + 1} runs{of}, and there "
        f"{'is' if len(runs) == 1 else 'are'} {len(runs) or 'none'}",
        hint="run the matrix (again) first, or see: mudpuppy-pressure history",
    )


def _find_by_folder(history: HistoryQueries, folder: Path) -> RunRow:
    run_id = read_run_id(folder)
    run = history.run(run_id) if run_id else None
    if run is not None:
        return run
    found = f"run {run_id}, which is not in it" if run_id else "no run of it"
    raise HistoryError(
        f"{folder}: expected the folder of a run in {history.path}, found {found}",
        hint="name the history that it was recorded in with --history",
    )


def _known(history: HistoryQueries, run_id: str) -> RunRow:
    run = history.run(run_id)
    assert run is not None
    return run
