"""The history: each result once, every question answered by an index, foreign files refused."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from harness import history_schema
from harness.findings import Status
from harness.history import History
from harness.history_schema import HistoryError, transaction
from harness.results import Outcome, WorkerExit
from mudpuppy.errors import MudpuppyError
from tests.harness.history_data import add_run, make_result, make_run, new_history


def test_what_was_recorded_is_what_is_answered(tmp_path: Path) -> None:
    bad = make_result("lora-dora", Outcome.FAILED, wall_s=2.5, mib=321)
    with new_history(tmp_path) as history:
        add_run(history, 1, make_result("lora"), bad)

    with History(tmp_path / "history.sqlite") as history:
        (run,) = history.runs()
        (row,) = history.results_of(bad.cell_id)

    assert run.counts == {"passed": 1, "failed": 1, "skipped": 0, "crashed": 0}
    assert (run.name, run.verdict, run.host) == ("seed", "passed", "here")
    assert (row.outcome, row.status, row.codes) == (Outcome.FAILED, Status.FAILED, ("MPD203",))
    assert (row.wall_s, row.cpu_s, row.peak_rss_bytes) == (2.5, 1.25, 321 * 2**20)
    assert (row.ending, row.message) == ("exit code 0", "it failed")


def test_device_memory_is_a_column_of_its_own(tmp_path: Path) -> None:
    with new_history(tmp_path) as history:
        add_run(history, 1, make_result("gpu", metrics={"peak_device_bytes": 2.0**33}))
        add_run(history, 2, make_result("cpu"))

        assert history.results_of(make_result("gpu").cell_id)[0].device_bytes == 2**33
        assert history.results_of(make_result("cpu").cell_id)[0].device_bytes is None


def test_a_cell_stands_once_in_a_run_and_the_newest_verdict_counts(tmp_path: Path) -> None:
    with new_history(tmp_path) as history:
        key = add_run(history, 1, make_result("lora", Outcome.FAILED))

        history.record(key, make_result("lora", attempt=2))
        history.record(key, make_result("lora", attempt=2))

        (row,) = history.results_in(key)
    assert (row.outcome, row.attempt, row.codes) == (Outcome.PASSED, 2, ())


def test_the_database_itself_refuses_a_second_result(tmp_path: Path) -> None:
    with new_history(tmp_path) as history:
        add_run(history, 1, make_result("lora"))
    with sqlite3.connect(tmp_path / "history.sqlite") as raw:
        (columns,) = raw.execute(
            "SELECT group_concat(name) FROM pragma_table_info('results') WHERE name <> 'result_key'"
        ).fetchone()

        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
            raw.execute(f"INSERT INTO results ({columns}) SELECT {columns} FROM results")


def test_a_result_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    torn = make_result("lora", Outcome.FAILED, findings=({"code": "MPD203", "severity": object()},))
    with new_history(tmp_path) as history:
        key = add_run(history, 1)

        with pytest.raises(sqlite3.Error):
            history.record(key, torn)

        assert history.results_in(key) == ()
        assert history.query("SELECT * FROM cells") == []


def test_a_commit_that_fails_leaves_no_transaction_open() -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("CREATE TABLE one (k INTEGER PRIMARY KEY)")
    connection.execute("CREATE TABLE two (k REFERENCES one DEFERRABLE INITIALLY DEFERRED)")

    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"), transaction(connection):
        connection.execute("INSERT INTO two VALUES (7)")

    with transaction(connection):
        connection.execute("INSERT INTO one VALUES (7)")
    assert [] == connection.execute("SELECT * FROM two").fetchall()


def test_an_error_that_ends_the_transaction_itself_is_the_one_that_is_told() -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("CREATE TABLE one (k INTEGER PRIMARY KEY)")

    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"), transaction(connection):
        connection.executemany("INSERT OR ROLLBACK INTO one VALUES (?)", [(7,), (7,)])


def test_kept_results_stand_in_the_new_run_and_are_written_once(tmp_path: Path) -> None:
    kept = make_result("kept", run_id=make_run(1).run_id)
    with new_history(tmp_path) as history:
        add_run(history, 1, kept, make_result("again", Outcome.FAILED))
        second = add_run(history, 2, make_result("again"))

        history.keep(second, [kept, make_result("unknown", run_id="never")])
        history.keep(second, [kept])

        assert {row.name for row in history.results_in(second)} == {"kept", "again"}
        assert history.runs()[0].counts["passed"] == 2
        assert len(history.results_of(kept.cell_id)) == 1
        assert history.grid([second])[kept.cell_id] == {second: Outcome.PASSED}

        history.record(second, make_result("kept", Outcome.FAILED))  # made anew after all

        assert history.runs()[0].counts == {"passed": 1, "failed": 1, "skipped": 0, "crashed": 0}


def test_attempts_of_one_run_stand_beside_its_verdict(tmp_path: Path) -> None:
    outcomes = (Outcome.PASSED, Outcome.FAILED, Outcome.PASSED)
    with new_history(tmp_path) as history:
        key = add_run(history, 1)
        for number, outcome in enumerate(outcomes, start=1):
            history.record_attempt(key, make_result("lora", outcome, attempt=number))
        history.record(key, make_result("lora", Outcome.FAILED, attempt=3))

        seen = history.attempts(make_run(1).run_id, make_result("lora").cell_id)

    assert seen == outcomes


def test_the_last_result_is_honest_and_was_one(tmp_path: Path) -> None:
    skipped = make_result("lora", Outcome.NOT_RUN, worker=None)
    with new_history(tmp_path) as history:
        add_run(history, 1, make_result("lora", Outcome.PASSED))
        add_run(history, 2, make_result("lora", Outcome.TIMEOUT, wall_s=300.0))
        add_run(history, 3, make_result("lora"), plant="merge-does-nothing")
        add_run(history, 4, make_result("lora"), kind="shrink")
        add_run(history, 5, skipped)

        last = history.last_results([skipped.cell_id, "0" * 12])

    assert [*last] == [skipped.cell_id]
    assert (last[skipped.cell_id].status, last[skipped.cell_id].wall_s) == (Status.CRASHED, 300.0)


def test_the_expected_duration_is_the_mean_of_the_newest(tmp_path: Path) -> None:
    with new_history(tmp_path) as history:
        for number, wall_s in enumerate((90.0, 80.0, 1.0, 2.0, 3.0, 4.0, 70.0), start=1):
            add_run(history, number, make_result("lora", wall_s=wall_s))
        add_run(history, 8, make_result("never", Outcome.NOT_RUN, worker=None))

        cells = [make_result(name).cell_id for name in ("lora", "never", "unknown")]
        assert history.durations(cells) == {cells[0]: 16.0}


@pytest.mark.parametrize(
    ("word", "names"), [("lora", ["lora"]), ("lora*", ["lora", "lora-dora"]), ("?pt?", ["gptq"])]
)
def test_cells_are_found_by_name_and_glob(tmp_path: Path, word: str, names: list[str]) -> None:
    with new_history(tmp_path) as history:
        add_run(history, 1, *map(make_result, ("lora", "lora-dora", "gptq")))

        assert [*history.cells(word)] == [make_result(name).cell_id for name in names]
        assert history.cells(make_result("gptq").cell_id) == history.cells("gptq")


def test_an_unknown_cell_is_told_its_neighbours(tmp_path: Path) -> None:
    with new_history(tmp_path) as history:
        add_run(history, 1, make_result("lora-dora"))

        with pytest.raises(HistoryError, match="is called 'lora-doar'; did you mean 'lora-dora'"):
            history.cells("lora-doar")


def test_numbers_that_json_cannot_say_are_kept_as_words(tmp_path: Path) -> None:
    with new_history(tmp_path) as history:
        add_run(history, 1, make_result("lora", metrics={"loss_after": float("nan")}))

        assert history.query("SELECT metrics FROM results") == [('{"loss_after": "nan"}',)]


def test_signals_and_limits_are_told_apart(tmp_path: Path) -> None:
    ends = {
        "signal": WorkerExit(exit_code=None, signal="SIGSEGV", wall_s=1, peak_rss_bytes=1),
        "late": WorkerExit(
            exit_code=None, signal="SIGTERM", timed_out=True, wall_s=1, peak_rss_bytes=1
        ),
    }
    with new_history(tmp_path) as history:
        add_run(history, 1, *(make_result(n, Outcome.CRASHED, worker=w) for n, w in ends.items()))

        seen = {row.name: row.ending for row in history.results_in(1)}

    assert seen == {"signal": "SIGSEGV", "late": "time limit"}


def test_readers_read_while_the_writer_is_in_the_middle(tmp_path: Path) -> None:
    with new_history(tmp_path) as writer, History(tmp_path / "history.sqlite") as reader:
        key = add_run(writer, 1, make_result("lora"))
        with history_schema.transaction(writer._connection):
            writer._connection.execute("DELETE FROM results")

            assert len(reader.results_in(key)) == 1

        assert reader.results_in(key) == ()


def test_a_missing_history_is_said_plainly_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match="there is no history at"):
        History(tmp_path / "history.sqlite")

    assert [] == list(tmp_path.iterdir())


def test_a_file_of_others_is_refused_and_left_alone(tmp_path: Path) -> None:
    text, database = tmp_path / "notes.md", tmp_path / "cookies.sqlite"
    text.write_text("# Notes\n" * 100, encoding="utf-8")
    with sqlite3.connect(database) as raw:
        raw.execute("CREATE TABLE cookies (a)")
    before = database.read_bytes()

    with pytest.raises(HistoryError, match="is no history of mudpuppy"):
        History(text, create=True)
    with pytest.raises(HistoryError, match="database of another program"):
        History(database, create=True)

    assert (text.read_text("utf-8")[:7], database.read_bytes()) == ("# Notes", before)


def test_a_newer_history_is_refused_with_both_versions(tmp_path: Path) -> None:
    new_history(tmp_path).close()
    with sqlite3.connect(tmp_path / "history.sqlite") as raw:
        raw.execute("PRAGMA user_version = 99")

    with pytest.raises(HistoryError, match="has version 99, and this mudpuppy knows versions up"):
        History(tmp_path / "history.sqlite")


@pytest.mark.parametrize("column", ["outcome", "status"])
def test_a_word_that_this_version_does_not_know_is_said_without_a_traceback(
    tmp_path: Path, column: str
) -> None:
    with new_history(tmp_path) as history:
        add_run(history, 1, make_result("lora"))
    with sqlite3.connect(tmp_path / "history.sqlite") as raw:
        raw.execute(f"UPDATE results SET {column} = 'splendid'")

    with (
        History(tmp_path / "history.sqlite") as history,
        pytest.raises(HistoryError, match=f"holds the {column} 'splendid'"),
    ):
        history.results_of(make_result("lora").cell_id)


def test_an_older_history_is_brought_up_to_date_with_all_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_history(tmp_path) as history:
        add_run(history, 1, make_result("lora"))
    more = (*history_schema.MIGRATIONS, ("ALTER TABLE runs ADD COLUMN note TEXT",))
    monkeypatch.setattr(history_schema, "MIGRATIONS", more)

    with History(tmp_path / "history.sqlite") as history:
        assert history.query("SELECT note, run_id FROM runs") == [(None, make_run(1).run_id)]
        assert history.query("PRAGMA user_version") == [(len(more),)]


def test_a_migration_that_breaks_leaves_the_old_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_history(tmp_path) as history:
        add_run(history, 1, make_result("lora"))
    broken = ("ALTER TABLE runs ADD COLUMN note TEXT", "ALTER TABLE nowhere ADD COLUMN note TEXT")
    with monkeypatch.context() as patch:
        patch.setattr(history_schema, "MIGRATIONS", (*history_schema.MIGRATIONS, broken))
        with pytest.raises(HistoryError, match="nowhere"):
            History(tmp_path / "history.sqlite")

    with History(tmp_path / "history.sqlite") as history:
        assert len(history.runs()) == 1
        assert ("note",) not in history.query("SELECT name FROM pragma_table_info('runs')")


def test_a_history_that_cannot_be_written_is_still_read(tmp_path: Path) -> None:
    with new_history(tmp_path) as history:
        add_run(history, 1, make_result("lora"))
    path = tmp_path / "history.sqlite"
    assert not path.with_name("history.sqlite-wal").exists()
    path.chmod(0o444)
    tmp_path.chmod(0o555)
    try:
        with History(path) as history:
            assert len(history.runs()) == 1
    finally:
        tmp_path.chmod(0o755)


def read_all(path: Path) -> None:
    with History(path) as history:
        history.runs()
        history.cells("*")


def test_a_damaged_history_is_named_when_it_is_asked(tmp_path: Path) -> None:
    with new_history(tmp_path) as history:
        for number in range(30):
            add_run(history, number, make_result(f"cell-{number}"))
    path = tmp_path / "history.sqlite"
    content = bytearray(path.read_bytes())
    content[4096 * 2 :] = b"\xff" * (len(content) - 4096 * 2)
    path.write_bytes(content)

    with pytest.raises(MudpuppyError, match="history"):
        read_all(path)


WRITER = """
    import sys
    from pathlib import Path
    from harness.results import Outcome
    from tests.harness.history_data import History, add_run, make_result, make_run
    with History(Path(sys.argv[1]), create=True) as history:
        key = add_run(history, 1)
        done = len(history.results_in(key))
        print("ready", flush=True)
        for number in range(done, done + 100_000):
            history.record(key, make_result(f"c{number}", Outcome.FAILED))
"""


def test_a_writer_killed_at_any_moment_leaves_whole_results_only(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    print(f"seed {seed}")  # shown when the test fails
    path = tmp_path / "history.sqlite"
    before = 0
    for _ in range(5):
        writer = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(path)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE,
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        with History(path) as reader:  # reads while it is written, and when the writer is gone
            time.sleep(chance.uniform(0.02, 0.15))
            writer.send_signal(signal.SIGKILL)
            writer.communicate(timeout=20)
            names = {row.name: row.codes for row in reader.results_in(1)}
            assert reader.query("PRAGMA integrity_check") == [("ok",)]
        assert names == {f"c{number}": ("MPD203",) for number in range(len(names))}
        assert len(names) > before
        before = len(names)
