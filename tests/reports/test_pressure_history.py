"""mudpuppy-pressure history and diff from the outside: what they print and return."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.history import History
from harness.results import Outcome
from reports.commands.pressure import main
from tests.harness.history_data import add_run, make_result, make_run

MESSAGE = "MPD203 adapter-never-trained: 12 of 12 tensors never moved"
RUNS = """\
run                   matrix        pass  fail  crash  skip  time  revision
--------------------  ------------  ----  ----  -----  ----  ----  --------
20260201-000003-abcd  a-matrix-w..     1     0      0     0    0s  0000000
  planted on purpose: eos-masked
20260201-000002-abcd  seed             1     1      0     0    0s  f8c8a9f+
20260201-000001-abcd  seed             2     0      0     0    0s  0000000

3 runs
"""
CELL = """\
lora-dora: Lora-Dora  (cell-id-here)
2 results: 1 passed, 1 failed; usually 1.0 s and 100 MiB

run                   outcome   time   memory  revision
--------------------  -------  -----  -------  --------
20260201-000002-abcd  failed   1.0 s  100 MiB  f8c8a9f+
  MPD203 adapter-never-trained: 12 of 12 tensors never moved
20260201-000001-abcd  passed   1.0 s  100 MiB  0000000
"""
DIFF = """\
1 new failure; 1 of 2 cells unchanged

old  20260201-000001-abcd  seed 0000000  2 passed
new  20260201-000002-abcd  seed f8c8a9f+  1 passed, 1 failed
     git: 000000000001 -> f8c8a9f26423+changes

new failure
  lora-dora
    passed -> failed: MPD203 adapter-never-trained: 12 of 12 tensors never moved
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    failed = make_result("lora-dora", Outcome.FAILED, message=MESSAGE)
    with History(Path("runs/history.sqlite"), create=True) as history:
        add_run(history, 1, make_result("lora"), make_result("lora-dora"))
        add_run(history, 2, make_result("lora"), failed, revision="f8c8a9f26423+changes")
        add_run(history, 3, make_result("lora"), name="a-matrix-with-a-name", plant="eos-masked")
    return tmp_path


def test_runs_are_a_table_of_80_columns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history"]) == 0

    out = capsys.readouterr().out
    assert out == RUNS
    assert max(map(len, out.splitlines())) <= 80


def test_a_cell_is_shown_over_time(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", "lora-dora"]) == 0

    out = capsys.readouterr().out
    assert out == CELL.replace("cell-id-here", make_result("lora-dora").cell_id)


def test_a_limit_says_how_many_there_are(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", "-n", "1"]) == 0
    assert main(["history", "lora", "-n", "2"]) == 0

    out = capsys.readouterr().out
    assert "3 runs, the newest 1 of them shown" in out
    assert "the newest 2 of 3 results: 2 passed" in out


def test_a_glob_shows_every_cell_that_it_names(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["history", "lora*", "--matrix", "seed", "--json"]) == 0

    told = json.loads(capsys.readouterr().out)
    assert told["schema_version"] == 1
    assert {one["results"][0]["name"]: one["total"] for one in told["cells"]} == {
        "lora": 2,
        "lora-dora": 2,
    }


def test_a_diff_says_first_what_changed_and_exits_with_1(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", "last~1", "last"]) == 1

    assert capsys.readouterr().out == DIFF


def test_a_diff_the_other_way_round_is_no_failure(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", "last", "last~1"]) == 0

    assert capsys.readouterr().out.startswith("1 fixed; 1 of 2 cells unchanged\n")


def test_a_diff_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", make_run(1).run_id, make_run(2).run_id, "--json"]) == 1

    told = json.loads(capsys.readouterr().out)
    assert (told["schema_version"], told["exit_code"]) == (1, 1)
    assert [(one["kind"], one["name"]) for one in told["changes"]] == [("new failure", "lora-dora")]
    assert told["new"]["counts"] == {"passed": 1, "failed": 1, "skipped": 0, "crashed": 0}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["history", "loar"], "is called 'loar'; did you mean 'lora'"),
        (["history", "-n", "-1"], "-n -1: expected 0 or more"),
        (["history", "--matrix", "sead"], "no run of a matrix 'sead'"),
        (["history", "lora", "--matrix", "full"], "'lora' has no result in matrix 'full'"),
        (["history", "--history", "x.sqlite"], "there is no history at x.sqlite"),
        (["history", "--history", "notes.md"], "notes.md: is no history of mudpuppy"),
        (["diff", "last", "last"], f"are the same run: {make_run(2).run_id}"),
        (["diff", "last~7", "last"], "'last~7' needs 8 runs of 'seed', and there are 2"),
        (["diff", "last"], "the following arguments are required"),
    ],
)
def test_a_mistake_is_exit_code_2(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    (folder / "notes.md").write_text("# Notes\n" * 100, encoding="utf-8")
    try:
        code = main(words)
    except SystemExit as exit_:
        code = int(str(exit_.code))

    assert code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (folder / "x.sqlite").exists()


def test_escapes_in_a_history_reach_no_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with History(Path("runs/history.sqlite")) as history:
        evil = make_result("evil", Outcome.FAILED, title="\x1b[31m", message="\x1b]0;title\x07")
        add_run(history, 4, evil)

    main(["history", "evil"])
    main(["diff", "last~1", "last"])

    assert "\x1b" not in capsys.readouterr().out
