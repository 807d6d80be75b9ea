"""What every report on a matrix shares: the verdict in words, rows, the command for one cell."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from harness.findings import Status
from harness.results import CellResult, MatrixResult, Outcome, SmallestFailure


@dataclass(frozen=True, kw_only=True)
class Row:
    """One cell as a line of a table."""

    number: str
    """Place in the scenario file."""
    title: str
    """What was tried."""
    name: str
    """Name of the cell."""
    outcome: str
    """The outcome in words."""
    loss: str
    """First and last loss."""
    time: str
    """Wall time of the worker."""
    folder: str
    """Name of the cell's folder inside the run's folder."""
    status: Status
    """The ending."""


def describe_verdict(matrix: MatrixResult) -> str:
    """Return the whole run in one sentence, the worst first."""
    counts = matrix.counts
    ran = sum(counts.values()) - counts["skipped"]
    if ran == 0:
        return f"Nothing was checked: none of the {len(matrix.cells)} cells ran."
    as_expected = f"{counts['passed']} of {ran} cells came out as expected"
    parts = [
        f"{counts[key]} {word}"
        for key, word in (("failed", "failed"), ("crashed", "could not be checked"))
        if counts[key]
    ]
    text = f"{' and '.join(parts)}; {as_expected}" if parts else as_expected
    refused = len(list_rejections(matrix))
    text += f", {refused} of them by rejection" if refused else ""
    return text + (f"; {counts['skipped']} did not run." if counts["skipped"] else ".")


def describe_kept(matrix: MatrixResult) -> str:
    """Return how many results are from an earlier run and how to make them anew, or nothing."""
    if not matrix.kept:
        return ""
    revisions = {
        str(cell.environment.get("git"))
        for cell in matrix.cells
        if cell.name in matrix.kept and cell.environment.get("git") != matrix.environment.get("git")
    }
    older = f", made at revision {', '.join(sorted(revisions))}" if revisions else ""
    number = len(matrix.kept)
    return (
        f"{number} {_plural(number, 'result')} kept from an earlier run{older} "
        "(--rerun all runs every cell again)."
    )


def list_rows(matrix: MatrixResult) -> tuple[Row, ...]:
    """Return one row per cell, in matrix order."""
    return tuple(make_row(cell) for cell in matrix.cells)


def make_row(cell: CellResult) -> Row:
    """Return a cell as a line of a table."""
    return Row(
        number=str(cell.number),
        title=cell.title,
        name=cell.name,
        outcome=describe_outcome(cell.outcome),
        loss=describe_loss(cell),
        time=f"{cell.worker.wall_s:.1f} s" if cell.worker else "",
        folder="" if cell.outcome is Outcome.NOT_RUN and not cell.worker else cell.cell_id,
        status=cell.status,
    )


def describe_outcome(outcome: Outcome) -> str:
    """Return an outcome as words."""
    return outcome.value.replace("-", " ")


def describe_loss(cell: CellResult) -> str:
    """Return the first and the last loss of a cell, or nothing when it had none."""
    first, final = cell.metrics.get("loss_before"), cell.metrics.get("loss_after")
    if first is None or final is None:
        return ""
    return f"{_number(first)} -> {_number(final)}"


def list_failures(matrix: MatrixResult) -> tuple[CellResult, ...]:
    """Return the cells that failed or crashed, in matrix order."""
    bad = (Status.FAILED, Status.CRASHED)
    return tuple(cell for cell in matrix.cells if cell.status in bad)


def describe_smallest(found: SmallestFailure) -> tuple[str, ...]:
    """Return a smallest failing combination as lines, it first."""
    words = ", ".join(filter(None, (found.outcome.replace("-", " "), found.mark)))
    needed = ", ".join(found.factors) or "nothing: plain LoRA in fp32 fails like this"
    label = "smallest failing combination" if found.is_smallest else "smallest found so far"
    effort = f"{found.ran} cells run, {found.looked_up} known"
    why = effort if found.is_smallest else f"the budget is spent: {effort}"
    shown = ", ".join(found.cells[:5])
    more = f" and {len(found.cells) - 5} more" if len(found.cells) > 5 else ""
    return (
        f"{label}: {found.combination} ({words})",
        f"   needs: {needed}",
        f"   explains: {shown}{more}",
        f"   id: {found.cell_id} ({why})",
    )


def list_rejections(matrix: MatrixResult) -> tuple[CellResult, ...]:
    """Return the cells that were rejected as expected."""
    wanted = Outcome.REJECTED_AS_EXPECTED
    return tuple(cell for cell in matrix.cells if cell.outcome is wanted)


def list_not_run(matrix: MatrixResult) -> dict[str, tuple[CellResult, ...]]:
    """Return the cells that did not run, by reason."""
    cells = [cell for cell in matrix.cells if cell.status is Status.SKIPPED]
    reasons = dict.fromkeys(cell.message for cell in cells)
    return {why: tuple(cell for cell in cells if cell.message == why) for why in reasons}


def repro_command(matrix: MatrixResult, names: Sequence[str]) -> str:
    """Return what to type to run only these cells again."""
    words = ["mudpuppy-pressure", "run", matrix.matrix]
    words += [word for name in names for word in ("--select", name)]
    words += ["--rerun", "all", "-o", matrix.folder]
    words += ["--model", matrix.model] if matrix.model else []
    words += ["--plant", matrix.plant] if matrix.plant else []
    return shlex.join(words)


def _plural(number: int, noun: str) -> str:
    return noun if number == 1 else noun + "s"


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else str(value)
