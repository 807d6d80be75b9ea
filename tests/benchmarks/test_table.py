"""The table runs what it is told to, hides nothing, and notices what got worse."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import render, table
from benchmarks.frame import Plan, Row, Subject, at_most
from benchmarks.rows import load_subjects
from tests.test_architecture import HEAVY, ROOT

SUBJECTS = load_subjects()


@pytest.fixture(autouse=True)
def wide_console(monkeypatch: pytest.MonkeyPatch) -> Console:
    console = Console(width=300, record=True, quiet=False)
    monkeypatch.setattr(table, "console", console)
    return console


def made_result(calm: float, status: str = "reached", processor: str = "here") -> dict:
    row = {"name": "r", "what": "what", "figure": "rmse", "status": status, "goal": "≤ 1"}
    if status != "not run":
        row |= {"calm": calm, "ratio": calm}
    else:
        row |= {"reason": "no GPU here"}
    machine = {"processor": processor, "cores": 2}
    return {
        "subject": "some",
        "title": "Some",
        "mode": "quick",
        "date": "2026-01-01",
        "machine": machine,
        "versions": {"torch": "2"},
        "threads": 1,
        "load_before": 0.0,
        "load_after": 0.0,
        "seconds": 1.0,
        "rows": [row],
    }


SOME = Subject(
    name="some",
    title="Some",
    measure=lambda plan: {},
    rows=(Row(name="r", what="what", ours="ours", against=None, goal=at_most(1), figure="rmse"),),
)


def test_naming_the_rows_imports_nothing_heavy():
    code = (
        "import sys\nfrom benchmarks.rows import load_subjects\nassert load_subjects()\n"
        f"sys.exit(' '.join(n for n in {HEAVY!r} if n in sys.modules) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert 0 == done.returncode, done.stderr


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
def test_rows_have_names_of_their_own_and_a_file_is_short(subject: Subject):
    names = [row.name for row in subject.rows]
    lines = (ROOT / f"benchmarks/rows/{subject.name}.py").read_text().splitlines()

    assert names
    assert len(names) == len(set(names))
    assert len(lines) <= 400


def test_what_cannot_run_here_is_a_row_with_its_reason(
    wide_console: Console, monkeypatch: pytest.MonkeyPatch
):
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")
    code = table.main(["accelerator", "--no-write"])

    shown = wide_console.export_text()
    assert 0 == code
    assert "not run: no GPU here" in shown


def test_a_measurement_that_crashes_is_an_outcome_and_the_exit_code_says_so(
    wide_console: Console, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(table, "load_subjects", lambda: {"some": SOME})  # the child knows no such

    assert 3 == table.main(["some", "--no-write"])
    assert "crashed: exit code 1" in wide_console.export_text()


def test_a_measurement_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch):
    slow = Subject(name="some", title="", measure=lambda plan: {}, rows=(), minutes=0.3 / 60)

    assert "took longer" in table._run([sys.executable, "-c", "import time; time.sleep(9)"], slow)


def test_an_unknown_name_is_a_usage_error(wide_console: Console):
    assert 2 == table.main(["nonesuch"])
    assert "no such subject: nonesuch" in wide_console.export_text()


@pytest.mark.parametrize(
    ("statuses", "code"), [(["reached", "not run"], 0), (["reached", "short"], 1)]
)
def test_a_row_that_is_short_of_its_goal_fails_and_one_that_cannot_run_does_not(
    monkeypatch: pytest.MonkeyPatch, statuses: list[str], code: int
):
    made = [made_result(1.0, status) for status in statuses]
    result = made[0] | {"rows": [one["rows"][0] for one in made]}
    monkeypatch.setattr(table, "load_subjects", lambda: {"some": SOME})
    monkeypatch.setattr(table, "measure", lambda *_: result)

    assert code == table.main(["some", "--no-write"])


@pytest.mark.parametrize(
    ("figures", "code", "measured"), [([1.01], 0, 1), ([1.2, 1.2, 1.2], 1, 3), ([1.2, 1.0], 0, 2)]
)
def test_what_is_worse_is_measured_again_and_fails_only_if_it_stays_so(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    figures: list[float],
    code: int,
    measured: int,
):
    table.keep(made_result(1.0), tmp_path)
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    monkeypatch.setattr(table, "load_subjects", lambda: {"some": SOME})
    left = list(figures)
    monkeypatch.setattr(table, "measure", lambda *_: made_result(left.pop(0)))

    assert code == table.main(["--quick"])
    assert measured == len(figures) - len(left)


def test_a_result_is_kept_and_one_that_was_not_run_does_not_replace_it(tmp_path: Path):
    table.keep(made_result(0.5), tmp_path)
    table.keep(made_result(0.0, "not run"), tmp_path)

    kept = table.read_result(tmp_path, "some", is_quick=True)
    assert kept
    assert 0.5 == kept["rows"][0]["calm"]
    assert table.read_result(tmp_path, "some", is_quick=False) is None


def test_the_page_names_what_is_short_not_run_and_not_measured():
    rows = [made_result(2.0, "short")["rows"][0], made_result(0, "not run")["rows"][0]]
    page = render.write_page(
        {"some": SOME, "other": SUBJECTS["gguf"]},
        {"some": made_result(1.0) | {"rows": rows}, "other": None},
    )

    assert "0 reached, 1 short, 1 not run." in page
    assert "- short: what (some), 2 (goal ≤ 1)" in page
    assert "- not run: what (some), no GPU here" in page
    assert "Not measured: `python -m benchmarks.table gguf`." in page


def test_the_child_writes_samples_facts_and_verdicts(tmp_path: Path):
    def measure(plan: Plan) -> dict:
        plan.facts["size"] = plan.pick(full=2, quick=1)
        return {"ours": [{"rmse": 0.5}]}

    subject = Subject(name="some", title="Some", measure=measure, rows=SOME.rows)
    options = table._parser().parse_args(
        ["--quick", "--rounds", "1", "--result", str(tmp_path / "r")]
    )

    table._measure_here(subject, options)

    found = json.loads((tmp_path / "r").read_text())
    assert {"size": 1} == found["facts"]
    assert {"ours": {"samples": [{"rmse": 0.5}]}} == found["sides"]
    assert "reached" == found["rows"][0]["status"]


def test_times_are_let_go_where_a_machine_may_be_busy_and_errors_are_not():
    timed = Subject(
        name="some",
        title="Some",
        measure=lambda plan: {},
        rows=(Row(name="r", what="what", ours="ours", against=None, goal=at_most(1)),),
    )
    worse, kept = made_result(90.0), made_result(0.5)

    def verdict(subject: Subject, times: bool) -> str:
        ((_, _, _, said),) = table.held_against(subject, worse, kept, times=times)
        return said

    assert verdict(timed, times=True).startswith("worse")
    assert verdict(timed, times=False).startswith("not guarded")
    assert verdict(SOME, times=False).startswith("worse")


def test_words_in_brackets_are_shown_as_they_are(wide_console: Console):
    result = made_result(1.0, "not run")
    result["rows"][0]["reason"] = "pip install 'mudpuppy[bench]'"
    wide_console.print(render.subject_table(result))
    lines = table.held_against(SOME, result, None)
    wide_console.print(render.guard_table(lines))
    assert wide_console.export_text().count("mudpuppy[bench]") == 2
