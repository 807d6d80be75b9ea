"""The history as text, 80 columns wide: the runs, one cell over time, two runs side by side."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime

from harness.findings import Status
from harness.history_rows import Change, Comparison, Kind, ResultRow, RunRow
from reports.text import clean

NAME_WIDTH = 12
"""Characters of a matrix name that a table shows."""
REVISION_DIGITS = 7
SHOWN_CHANGES = 20
"""Changes of one kind that are shown; `--json` gives all of them."""
HEADINGS = {
    Kind.NEW_FAILURE: ("new failure", "new failures"),
    Kind.FLAKY: ("flaky", "flaky"),
    Kind.STILL_FAILING: ("still failing", "still failing"),
    Kind.FIXED: ("fixed", "fixed"),
    Kind.SLOWER: ("slower", "slower"),
    Kind.BIGGER: ("bigger", "bigger"),
    Kind.NO_LONGER_RUN: ("no longer run", "no longer run"),
    Kind.APPEARED: ("appeared", "appeared"),
    Kind.DISAPPEARED: ("disappeared", "disappeared"),
}
"""What a kind of change is called, of one cell and of several."""


def write_runs(runs: Sequence[RunRow], total: int) -> str:
    """Return runs as a table, one line each."""
    headers = ("run", "matrix", "pass", "fail", "crash", "skip", "time", "revision")
    notes = [_note(run.plant, run.kind) for run in runs]
    table = _table(headers, "<<>>>>><", [_run_line(run) for run in runs], notes)
    more = f", the newest {len(runs)} of them shown" if len(runs) < total else ""
    return f"{table}\n\n{total:,} {'run' if total == 1 else 'runs'}{more}"


def write_cell(results: Sequence[ResultRow], total: int) -> str:
    """Return the results of one cell over time, the newest first.

    Args:
        results: at least one, all of the same cell.
        total: how many there are in all.
    """
    newest = results[0]
    lines = [f"{clean(newest.name)}: {clean(newest.title)}  ({newest.cell_id})"]
    counts = Counter(one.status for one in results)
    told = ", ".join(f"{counts[status]} {status}" for status in Status if counts[status])
    lines.append(f"{_of(len(results), total)}: {told}{_usual(results)}")
    rows = [_result_line(one) for one in results]
    headers = ("run", "outcome", "time", "memory", "revision")
    notes = [_result_note(one) for one in results]
    return "\n".join([*lines, "", _table(headers, "<<>><", rows, notes)])


def write_comparison(comparison: Comparison) -> str:
    """Return how two runs differ: the sentence first, then what differs, the worst first."""
    counts = Counter(change.kind for change in comparison.changes)
    parts = [
        f"{counts[kind]:,} {HEADINGS[kind][counts[kind] > 1]}" for kind in Kind if counts[kind]
    ]
    same = f"{comparison.unchanged:,} of {comparison.compared:,} cells unchanged"
    lines = [f"{', '.join(parts) or 'nothing differs'}; {same}", ""]
    lines += [_side("old", comparison.old), _side("new", comparison.new)]
    for name, (before, after) in comparison.environment.items():
        lines.append(f"     {clean(name)}: {clean(str(before))} -> {clean(str(after))}")
    for kind in Kind:
        changes = comparison.of(kind)
        if changes:
            lines += ["", HEADINGS[kind][len(changes) > 1], *_changes(changes)]
    return "\n".join(lines)


def _table(
    headers: Sequence[str],
    align: str,
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
) -> str:
    """Return a table, as narrow as it can be, in which a row may have a line of its own below."""
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    lines = [_line(headers, widths, align), "  ".join("-" * width for width in widths)]
    for row, note in zip(rows, notes, strict=True):
        lines.append(_line(row, widths, align))
        lines += [f"  {note}"] if note else []
    return "\n".join(lines)


def _line(row: Sequence[str], widths: Sequence[int], align: str) -> str:
    cells = (
        text.rjust(width) if side == ">" else text.ljust(width)
        for text, width, side in zip(row, widths, align, strict=True)
    )
    return "  ".join(cells).rstrip()


def _note(plant: str | None, kind: str = "matrix") -> str:
    """Return why a run does not count among the others, or nothing."""
    if plant:
        return f"planted on purpose: {clean(plant)}"
    return "" if kind == "matrix" else "looked for a smallest failing combination"


def _result_note(result: ResultRow) -> str:
    """Return what came out where that was no pass, and what was planted."""
    said = "" if result.status is Status.PASSED else clean(result.message)
    return "; ".join(filter(None, (_note(result.plant), said)))


def _changes(changes: Sequence[Change]) -> Iterator[str]:
    for change in changes[:SHOWN_CHANGES]:
        yield f"  {clean(change.name)}"
        yield f"    {clean(change.what)}"
    if len(changes) > SHOWN_CHANGES:
        yield f"  and {len(changes) - SHOWN_CHANGES:,} more (--json gives all of them)"


def _side(label: str, run: RunRow) -> str:
    """Return one of two runs on a line."""
    counts = ", ".join(f"{number} {status}" for status, number in run.counts.items() if number)
    plant = f", {clean(run.plant)} planted" if run.plant else ""
    name, revision = clean(run.name), _revision(run.revision)
    return f"{label}  {run.run_id}  {name} {revision}  {counts or 'no results'}{plant}".rstrip()


def _run_line(run: RunRow) -> tuple[str, ...]:
    name = clean(run.name)
    name = name if len(name) <= NAME_WIDTH else name[: NAME_WIDTH - 2] + ".."
    counts = (run.counts.get(status, 0) for status in _SHOWN_STATUSES)
    return (
        run.run_id,
        name,
        *map(str, counts),
        describe_time(run),
        _revision(run.revision),
    )


_SHOWN_STATUSES = (Status.PASSED, Status.FAILED, Status.CRASHED, Status.SKIPPED)


def _result_line(result: ResultRow) -> tuple[str, ...]:
    memory = result.peak_rss_bytes
    return (
        result.run_id,
        result.outcome.replace("-", " "),
        "" if result.wall_s is None else f"{result.wall_s:.1f} s",
        "" if not memory else f"{memory / 2**20:.0f} MiB",
        _revision(result.revision),
    )


def describe_time(run: RunRow) -> str:
    """Return how long a run took from its first start to its end, or that it has none."""
    if run.finished is None:
        return "no end"
    begun, ended = datetime.fromisoformat(run.started), datetime.fromisoformat(run.finished)
    minutes, seconds = divmod(int((ended - begun).total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h {minutes:02}m"
    return f"{minutes}m {seconds:02}s" if minutes else f"{seconds}s"


def _usual(results: Sequence[ResultRow]) -> str:
    """Return what the passed ones took in the middle, when there are some."""
    passed = [one for one in results if one.status is Status.PASSED and not one.plant]
    times = [one.wall_s for one in passed if one.wall_s is not None]
    sizes = [one.peak_rss_bytes for one in passed if one.peak_rss_bytes]
    if not times:
        return ""
    memory = f" and {statistics.median(sizes) / 2**20:.0f} MiB" if sizes else ""
    return f"; usually {statistics.median(times):.1f} s{memory}"


def _of(shown: int, total: int) -> str:
    if shown < total:
        return f"the newest {shown} of {total:,} results"
    return f"{total:,} {'result' if total == 1 else 'results'}"


def _revision(revision: str | None) -> str:
    """Return a short revision, with a plus when the tree differed from it."""
    if not revision:
        return "-"
    commit, plus, _ = clean(revision).partition("+")
    return commit[:REVISION_DIGITS] + plus
