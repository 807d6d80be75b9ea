"""Reports on a matrix: the whole text, for all endings, with hostile names in it.

`UPDATE_GOLDENS=1 pytest tests/reports/test_matrix_reports.py` writes the goldens anew; review them.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.findings import Status
from harness.results import CellLabel, CellResult, Finished, MatrixResult, Outcome, Started
from reports.matrix_console import print_verdict
from reports.matrix_json import write_json
from reports.matrix_markdown import write_markdown
from reports.matrix_progress import Progress, describe_seconds
from reports.matrix_summary import describe_kept, describe_verdict, repro_command
from tests.reports.matrix_data import CELLS, ENVIRONMENT, make_matrix

GOLDEN = Path(__file__).parent / "golden"
LABELS = [CellLabel(cell.cell_id, cell.number, cell.title) for cell in CELLS]


def check_golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDENS"):
        path.write_text(text, encoding="utf-8")

    assert path.read_text(encoding="utf-8") == text


def console_of(out: io.StringIO, *, is_terminal: bool = False) -> Console:
    return Console(file=out, force_terminal=is_terminal, width=100, highlight=False)


def test_the_whole_markdown_report_of_every_ending() -> None:
    check_golden("matrix_all.md", write_markdown(make_matrix()))


def test_the_whole_markdown_report_of_a_matrix_that_passed() -> None:
    kept = make_matrix(1, 2, kept=("lora",), environment={**ENVIRONMENT, "git": "ffffffffffff"})

    check_golden("matrix_passed.md", write_markdown(kept))


def test_a_plant_and_another_model_stand_at_the_top() -> None:
    text = write_markdown(make_matrix(1, plant="eos-masked", model="Qwen/Qwen2.5-0.5B"))

    assert "The bug `eos-masked` was planted on purpose." in text
    assert "Every cell used the model `Qwen/Qwen2.5-0.5B`." in text
    assert "--model Qwen/Qwen2.5-0.5B --plant eos-masked" in text


def test_hostile_text_stays_text() -> None:
    text = write_markdown(make_matrix())

    outside = "".join(text.split("````")[::2])
    assert "<script>" not in outside.replace("\\<script\\>", "")
    assert "\x1b" not in text
    assert "````text\nstep 1/8\n```\n" in text


def test_the_json_report_is_read_back_and_has_no_nan() -> None:
    text = write_json(make_matrix())

    value = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    again = MatrixResult.from_json(value)
    assert (value["schema_version"], value["verdict"], value["exit_code"]) == (1, "crashed", 3)
    assert [cell.outcome for cell in again.cells] == [cell.outcome for cell in CELLS]


def test_on_a_pipe_every_finished_cell_is_a_plain_line() -> None:
    out = io.StringIO()

    with Progress(console_of(out), LABELS) as progress:
        for cell in CELLS:
            progress.on_event(Started(cell.cell_id))
            progress.on_event(Finished(cell, kept=cell.number in (1, 10)))

    check_golden("matrix_lines.txt", out.getvalue())


def test_quiet_prints_no_progress() -> None:
    out = io.StringIO()

    with Progress(console_of(out), LABELS, quiet=True) as progress:
        progress.on_event(Finished(CELLS[0]))

    assert out.getvalue() == ""


def test_on_a_terminal_a_table_fills() -> None:
    out = io.StringIO()
    progress = Progress(console_of(out), LABELS[:4])
    progress.on_event(Finished(CELLS[0], kept=True))
    progress.on_event(Started(CELLS[2].cell_id))

    console_of(out).print(progress)

    lines = [" ".join(line.split()) for line in out.getvalue().splitlines()]
    assert lines[-5:] == [
        "1 LoRA passed (kept) 2.312 -> 0.500 5.2 s",
        "2 LoRA + streaming waiting",
        "3 Full + streaming | <script> running 0 s",
        "4 GPTQ + streaming waiting",
        "1/4 1 passed (1 kept) 1 running 0 s",
    ]


def test_a_terminal_gets_colours_unless_they_are_not_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def shown() -> str:
        out = io.StringIO()
        console = console_of(out, is_terminal=True)
        with Progress(console, LABELS) as progress:
            progress.on_event(Finished(CELLS[0]))
        return out.getvalue()

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32mpassed" in shown()

    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in shown()


def make_labels(number: int) -> list[CellLabel]:
    return [CellLabel(f"{one:012x}", one, f"cell {one}") for one in range(1, number + 1)]


def make_result(number: int, **changes: Any) -> CellResult:
    return replace(CELLS[0], cell_id=f"{number:012x}", number=number, **changes)


def test_a_long_matrix_shows_counts_what_runs_what_failed_and_when_it_ends() -> None:
    shown = io.StringIO()
    now = [0.0]
    labels = make_labels(1000)
    known = {label.cell_id: 2.0 for label in labels}
    progress = Progress(
        console_of(io.StringIO()), labels, durations=known, jobs=2, clock=lambda: now[0]
    )
    for number in range(1, 101):
        progress.on_event(Started(labels[number - 1].cell_id))
    now[0] = 3.0
    for number in range(1, 99):
        changes = {"outcome": Outcome.FAILED, "status": Status.FAILED} if number > 88 else {}
        progress.on_event(Finished(make_result(number, **changes)))

    console_of(shown).print(progress)

    text = shown.getvalue()
    assert "98/1000  88 passed  10 failed  2 running  3 s, about 15 min left" in text
    assert "cell 99 " in text
    assert "cell 91 " in text
    assert "cell 90 " not in text
    assert "and 2 failures before" in text
    assert len(text.splitlines()) < 16


def test_a_long_matrix_on_a_pipe_prints_failures_and_a_line_now_and_then() -> None:
    out = io.StringIO()
    now = [0.0]
    progress = Progress(console_of(out), make_labels(1000), clock=lambda: now[0])
    for number in range(1, 101):
        now[0] += 1.0
        changes = {"outcome": Outcome.FAILED, "status": Status.FAILED} if number == 50 else {}
        progress.on_event(Finished(make_result(number, **changes)))

    lines = out.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == [
        "30/1000", "50/1000", "60/1000", "90/1000",
    ]  # fmt: skip
    assert "failed" in lines[1]
    assert lines[0] == "30/1000  30 passed  30 s, about 85 min left"


def test_nobody_guesses_when_nothing_is_known() -> None:
    progress = Progress(console_of(io.StringIO()), make_labels(10))

    assert progress.seconds_left() is None


def test_times_are_said_as_people_say_them() -> None:
    assert [describe_seconds(one) for one in (3.2, 89, 720, 11100)] == [
        "3 s", "89 s", "12 min", "3 h 5 min",
    ]  # fmt: skip


def test_the_verdict_on_the_console() -> None:
    out = io.StringIO()

    print_verdict(console_of(out), make_matrix(), "runs/seed/report.md", quiet=False)

    check_golden("matrix_verdict.txt", out.getvalue())


def test_a_quiet_verdict_is_two_lines() -> None:
    out = io.StringIO()

    print_verdict(console_of(out), make_matrix(1), "runs/[red]/report.md", quiet=True)

    assert out.getvalue() == (
        "passed: 1 of 1 cells came out as expected.\nreport: runs/[red]/report.md\n"
    )


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ((1, 2), "2 of 2 cells came out as expected, 1 of them by rejection."),
        ((1, 10), "1 of 1 cells came out as expected; 1 did not run."),
        ((1, 3), "1 failed; 1 of 2 cells came out as expected."),
        ((6,), "1 could not be checked; 0 of 1 cells came out as expected."),
        ((9, 10), "Nothing was checked: none of the 2 cells ran."),
    ],
)
def test_the_verdict_in_one_sentence(numbers: tuple[int, ...], sentence: str) -> None:
    assert describe_verdict(make_matrix(*numbers)) == sentence


def test_results_of_an_older_revision_are_named() -> None:
    matrix = make_matrix(1, kept=("lora",), environment={"git": "ffffffffffff"})

    assert describe_kept(matrix) == (
        "1 result kept from an earlier run, made at revision 0123456789ab "
        "(--rerun all runs every cell again)."
    )


def test_the_command_for_one_cell_is_quoted() -> None:
    matrix = make_matrix(1, matrix="my files/seed.yaml", folder="runs/a b")

    assert repro_command(matrix, ["lora"]) == (
        "mudpuppy-pressure run 'my files/seed.yaml' --select lora --rerun all -o 'runs/a b'"
    )
