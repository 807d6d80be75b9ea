"""Two runs side by side: every way to differ has its name, and chance has none."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.history import History
from harness.history_diff import compare_runs
from harness.history_find import find_run
from harness.history_rows import Comparison, Kind
from harness.history_schema import HistoryError
from harness.results import CellResult, Outcome
from tests.harness.history_data import add_run, make_result, make_run, new_history

PASSED, FAILED, CRASHED = Outcome.PASSED, Outcome.FAILED, Outcome.CRASHED
SKIPPED = Outcome.NOT_RUN


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    with new_history(tmp_path) as opened:
        yield opened


def diff(history: History, old: str = "last~1", new: str = "last") -> Comparison:
    return compare_runs(history, find_run(history, old), find_run(history, new))


def kinds(comparison: Comparison) -> dict[str, Kind]:
    return {change.name: change.kind for change in comparison.changes}


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        (PASSED, FAILED, Kind.NEW_FAILURE),
        (Outcome.REJECTED_AS_EXPECTED, Outcome.MISSED_REJECTION, Kind.NEW_FAILURE),
        (PASSED, CRASHED, Kind.NEW_FAILURE),
        (None, FAILED, Kind.NEW_FAILURE),
        (SKIPPED, Outcome.OUT_OF_MEMORY, Kind.NEW_FAILURE),
        (FAILED, PASSED, Kind.FIXED),
        (Outcome.TIMEOUT, PASSED, Kind.FIXED),
        (FAILED, FAILED, Kind.STILL_FAILING),
        (FAILED, CRASHED, Kind.STILL_FAILING),
        (PASSED, SKIPPED, Kind.NO_LONGER_RUN),
        (FAILED, SKIPPED, Kind.NO_LONGER_RUN),
        (PASSED, None, Kind.DISAPPEARED),
        (FAILED, None, Kind.DISAPPEARED),
        (None, PASSED, Kind.APPEARED),
        (SKIPPED, PASSED, Kind.APPEARED),
        (PASSED, PASSED, None),
        (SKIPPED, SKIPPED, None),
        (None, SKIPPED, None),
    ],
)
def test_every_way_to_differ_has_its_name(
    history: History, before: Outcome | None, after: Outcome | None, kind: Kind | None
) -> None:
    for number, outcome in enumerate((before, after), start=1):
        add_run(history, number, *([make_result("lora", outcome)] if outcome else []))

    comparison = diff(history)

    assert kinds(comparison) == ({"lora": kind} if kind else {})
    assert comparison.exit_code == (kind is Kind.NEW_FAILURE)
    assert comparison.unchanged == (kind is None and before is not None)


def test_what_is_said_has_the_message_and_since_when_it_fails(history: History) -> None:
    add_run(history, 1, make_result("lora", FAILED))
    for number, outcome in enumerate((PASSED, CRASHED, FAILED, FAILED), start=2):
        add_run(history, number, make_result("lora", outcome))

    assert diff(history).changes[0].what == f"failed since {make_run(3).run_id}: it failed"
    assert diff(history, make_run(2).run_id).changes[0].what == "passed -> failed: it failed"


def test_a_cell_that_the_same_code_passes_and_fails_is_flaky(history: History) -> None:
    same = {"code": "aaaa"}
    add_run(history, 1, make_result("lora"), make_result("other", FAILED), **same)
    add_run(history, 2, make_result("lora", FAILED), make_result("other", FAILED), **same)

    comparison = diff(history)

    assert kinds(comparison) == {"lora": Kind.FLAKY, "other": Kind.STILL_FAILING}
    assert comparison.exit_code == 1
    assert diff(history, "last", "last~1").exit_code == 0


def test_flakiness_is_remembered_from_another_run_of_the_same_code(history: History) -> None:
    add_run(history, 1, make_result("lora"), code="aaaa")
    add_run(history, 2, make_result("lora"), code="bbbb")
    add_run(history, 3, make_result("lora", FAILED), code="aaaa")

    assert kinds(diff(history, "last~1")) == {"lora": Kind.FLAKY}


def test_attempts_that_disagree_are_flaky(history: History) -> None:
    add_run(history, 1, make_result("lora"))
    key = add_run(history, 2, make_result("lora", FAILED))
    history.record_attempt(key, make_result("lora", attempt=1))
    history.record_attempt(key, make_result("lora", FAILED, attempt=2))

    assert kinds(diff(history)) == {"lora": Kind.FLAKY}


def test_a_planted_bug_makes_nothing_flaky(history: History) -> None:
    add_run(history, 1, make_result("lora"), code="aaaa")
    add_run(history, 2, make_result("lora", FAILED), code="aaaa", plant="merge-does-nothing")

    comparison = diff(history, "last", make_run(2).run_id)

    assert kinds(comparison) == {"lora": Kind.NEW_FAILURE}


def test_a_skipped_cell_is_not_flaky(history: History) -> None:
    add_run(history, 1, make_result("lora", SKIPPED), code="aaaa")
    add_run(history, 2, make_result("lora", FAILED), code="aaaa")

    assert kinds(diff(history)) == {"lora": Kind.NEW_FAILURE}


def test_a_cell_with_new_settings_is_the_same_by_its_name(history: History) -> None:
    add_run(history, 1, make_result("lora", cell_id="1" * 12))
    add_run(history, 2, make_result("lora", FAILED, cell_id="2" * 12))

    (change,) = diff(history).changes

    assert (change.kind, change.before, change.cell_id) == (Kind.NEW_FAILURE, PASSED, "2" * 12)
    assert change.what.endswith("; its settings have changed")


def test_kept_results_stand_on_both_sides(history: History) -> None:
    kept = make_result("kept", FAILED, run_id=make_run(1).run_id)
    add_run(history, 1, kept, make_result("again", FAILED))
    history.keep(add_run(history, 2, make_result("again")), [kept])

    assert kinds(diff(history)) == {"again": Kind.FIXED, "kept": Kind.STILL_FAILING}


def measured(history: History, *values: float, what: str = "wall_s", host: str = "here") -> None:
    start = history.count_runs()
    for number, value in enumerate(values, start=start + 1):
        add_run(history, number, make_result("lora", **{what: value}), host=host)


def test_slower_than_its_past_explains(history: History) -> None:
    measured(history, 2.0, 2.1, 1.9, 2.0, 2.2, 2.0, 3.6)

    (change,) = diff(history).changes

    assert change.kind is Kind.SLOWER
    assert change.what == "2.0 -> 3.6 s (x 1.80); usual: 2.0 +- 0.1 s over 6 earlier runs"
    assert diff(history).exit_code == 0


def test_a_cell_that_is_unsteady_is_not_called_slower(history: History) -> None:
    measured(history, 2.0, 4.0, 3.0, 1.5, 5.0, 2.0, 3.6)

    assert diff(history).changes == ()


def test_a_cell_that_was_fast_once_is_not_called_slower(history: History) -> None:
    measured(history, 3.0, 3.1, 3.0, 2.9, 3.0, 1.0, 3.0)

    assert diff(history).changes == ()


def test_with_a_short_past_a_stated_ratio_decides(history: History) -> None:
    measured(history, 2.0, 2.8)
    assert diff(history).changes == ()

    measured(history, 4.4)

    assert diff(history).changes[0].what == (
        "2.8 -> 4.4 s (x 1.57); too few earlier runs for a spread, x 1.5 is the limit"
    )


def test_short_cells_may_take_a_fraction_longer(history: History) -> None:
    measured(history, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.4)

    assert diff(history).changes == ()


def test_other_hosts_say_nothing_about_this_one(history: History) -> None:
    measured(history, 1.0, 1.0, 1.0, 1.0, 1.0, host="fast")
    measured(history, 3.0, 4.0)

    assert diff(history).changes == ()


def test_bigger_than_its_past_explains(history: History) -> None:
    measured(history, 400, 404, 398, 400, 401, 400, 600, what="mib")

    (change,) = diff(history).changes

    assert change.kind is Kind.BIGGER
    assert change.what == "400 -> 600 MiB (x 1.50); usual: 400 +- 1 MiB over 6 earlier runs"


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(1.0, 1.2), min_size=7, max_size=12))
def test_values_within_a_fifth_of_each_other_are_never_slower(values: list[float]) -> None:
    with tempfile.TemporaryDirectory() as folder, new_history(Path(folder)) as history:
        measured(history, *values)

        assert diff(history).changes == ()


def test_what_else_differs_is_told(history: History) -> None:
    for number, torch in enumerate(("2.12", "2.13"), start=1):
        row = make_run(number)
        history.begin_run(row, {"torch": torch, "python": "3.12"})

    assert diff(history).environment == {"torch": ("2.12", "2.13")}


def runs_for_words(history: History) -> None:
    add_run(history, 1, name="seed")
    add_run(history, 2, name="full")
    add_run(history, 3, name="seed")
    add_run(history, 4, name="seed", plant="eos-masked")
    add_run(history, 5, name="seed-shrink", kind="shrink")


@pytest.mark.parametrize(
    ("word", "number"),
    [
        ("last", 3),
        ("last~0", 3),
        ("last~1", 1),
        (make_run(4).run_id, 4),
        (make_run(2).run_id[:-4], 2),
    ],
)
def test_a_word_means_a_run(history: History, word: str, number: int) -> None:
    runs_for_words(history)

    assert find_run(history, word).run_id == make_run(number).run_id


def test_last_can_be_about_another_matrix(history: History) -> None:
    runs_for_words(history)

    assert find_run(history, "last", name="full").run_id == make_run(2).run_id


def test_a_folder_means_the_run_that_it_holds(history: History, tmp_path: Path) -> None:
    from harness.recorder import Recorder, RunStart

    recorder = Recorder(history)
    recorder.recover(tmp_path)
    start = RunStart(name="seed", matrix="", environment={})
    run_id = recorder.begin(start, [], waiting=1)

    assert find_run(history, str(tmp_path)).run_id == run_id


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("last~2", "'last~2' needs 3 runs of 'seed', and there are 2"),
        ("2026", "5 runs begin with '2026': "),
        ("20260201-000001-abce", "did you mean '20260201-000001-abcd'"),
        ("last~", "no run in .* is called 'last~'"),
        (".", r"\.: expected the folder of a run in .*, found no run of it"),
        ("", "no run in .* is called ''"),
    ],
)
def test_a_word_that_means_no_run_is_an_error(history: History, word: str, message: str) -> None:
    runs_for_words(history)

    with pytest.raises(HistoryError, match=message):
        find_run(history, word)


def test_an_empty_history_has_no_last_run(history: History) -> None:
    with pytest.raises(HistoryError, match="'last' needs 1 runs, and there are none"):
        find_run(history, "last")


def test_a_comparison_with_many_cells_counts_right(history: History) -> None:
    def results(failing: set[int]) -> list[CellResult]:
        return [make_result(f"c{n}", FAILED if n in failing else PASSED) for n in range(200)]

    add_run(history, 1, *results({1, 2, 3}))
    add_run(history, 2, *results({3, 4}))

    comparison = diff(history)

    assert {kind: len(comparison.of(kind)) for kind in Kind if comparison.of(kind)} == {
        Kind.NEW_FAILURE: 1, Kind.STILL_FAILING: 1, Kind.FIXED: 2,
    }  # fmt: skip
    assert (comparison.compared, comparison.unchanged) == (200, 196)


def test_a_change_without_a_new_failure_exits_with_0(history: History) -> None:
    add_run(history, 1, make_result("lora", FAILED), make_result("gone"))
    add_run(history, 2, make_result("lora"), make_result("new"))
    comparison = diff(history)

    assert comparison.exit_code == 0
    worse: Any = replace(comparison.changes[0], kind=Kind.NEW_FAILURE)
    assert replace(comparison, changes=(worse,)).exit_code == 1
