"""Judging a cell: every ending of a worker against every expectation."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.judge import judge_cell
from harness.matrix import Cell
from harness.observations import Observations
from harness.required import required_probes
from harness.results import Outcome, WorkerExit
from scenarios.schema import Expectation
from tests.harness.probes.test_run_probes import CONFIG, HEALTHY

FINE = WorkerExit(exit_code=0, wall_s=1.0, peak_rss_bytes=1)


def make_cell(expect: Expectation | None = None, method: str = "lora", **config: Any) -> Cell:
    return Cell(
        cell_id="0123456789ab",
        name="cell",
        title="A cell",
        number=1,
        config={**CONFIG, "method": method, **config},
        expect=expect or Expectation(),
        timeout_s=9.0,
    )


REJECTED = make_cell(Expectation(outcome="rejected", code="MP-R07"))
REJECTION = Observations(ending="rejected", codes=("MP-R07",), torch_imported=False)


@pytest.mark.parametrize(
    ("worker_exit", "log", "outcome", "words"),
    [
        (replace(FINE, exit_code=1), "boom\n", Outcome.CRASHED, "boom"),
        (replace(FINE, exit_code=None, signal="SIGSEGV"), "", Outcome.CRASHED, "SIGSEGV"),
        (replace(FINE, exit_code=None, signal="SIGKILL"), "", Outcome.CRASHED, "memory"),
        (replace(FINE, exit_code=None, timed_out=True), "", Outcome.TIMEOUT, "time limit"),
        (replace(FINE, exit_code=1), "MemoryError\n", Outcome.OUT_OF_MEMORY, "MemoryError"),
        (FINE, "", Outcome.CRASHED, "without observations"),
    ],
)
def test_a_worker_that_observed_nothing_is_named(tmp_path, worker_exit, log, outcome, words):
    (tmp_path / "output.log").write_text(log)

    result = judge_cell(make_cell(), tmp_path, worker_exit)

    assert outcome is result.outcome
    assert words in result.message


@pytest.mark.parametrize(
    ("seen", "outcome", "words"),
    [
        (REJECTION, Outcome.REJECTED_AS_EXPECTED, "before torch"),
        (replace(REJECTION, codes=("MP-R05", "MP-R07")), Outcome.REJECTED_AS_EXPECTED, "MP-R07"),
        (replace(REJECTION, codes=("MP-R05",)), Outcome.WRONG_REJECTION, "instead of MP-R07"),
        (replace(REJECTION, torch_imported=True), Outcome.FAILED, "after torch"),
        (replace(REJECTION, files_written=("checkpoint/x",)), Outcome.FAILED, "x was written"),
        (Observations(ending="trained"), Outcome.MISSED_REJECTION, "MP-R07"),
        (Observations(ending="refused"), Outcome.MISSED_REJECTION, "MP-R07"),
        (Observations(ending="crashed"), Outcome.MISSED_REJECTION, "MP-R07"),
    ],
)
def test_a_rejection_must_come_with_its_code_before_torch_and_without_files(
    tmp_path, seen, outcome, words
):
    seen.write(tmp_path)

    result = judge_cell(REJECTED, tmp_path, FINE)

    assert outcome is result.outcome
    assert words in result.message


@pytest.mark.parametrize(
    ("seen", "outcome", "words"),
    [
        (replace(REJECTION, message="no"), Outcome.WRONG_REJECTION, "should have run: no"),
        (Observations(ending="refused", message="bad line"), Outcome.FAILED, "refused: bad line"),
        (Observations(ending="crashed", message="diverged"), Outcome.CRASHED, "diverged"),
        (Observations(ending="trained"), Outcome.FAILED, "MPD7"),
    ],
)
def test_a_cell_that_should_train_and_did_not_never_passes(tmp_path, seen, outcome, words):
    seen.write(tmp_path)

    result = judge_cell(make_cell(), tmp_path, FINE)

    assert outcome is result.outcome
    assert words in result.message


def test_a_cell_whose_decisive_probes_were_skipped_never_passes(tmp_path: Path):
    (tmp_path / "checkpoint").mkdir()
    Observations(ending="trained").write(tmp_path)

    result = judge_cell(make_cell(), tmp_path, FINE)

    assert result.outcome not in (Outcome.PASSED, Outcome.REJECTED_AS_EXPECTED)


def test_an_expected_finding_that_stays_silent_is_the_failure(tmp_path: Path):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "mudpuppy.json").write_text("{}")
    HEALTHY.write(tmp_path)

    result = judge_cell(make_cell(Expectation(findings=("MPD203",))), tmp_path, FINE)

    assert Outcome.FAILED is result.outcome
    assert "MPD203 should have found something and did not" == result.message


def test_an_expected_finding_that_comes_is_no_surprise(tmp_path: Path):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "mudpuppy.json").write_text("{}")
    (tmp_path / "output.log").write_text("step 1/3 loss 2.0\n")
    replace(HEALTHY, loss_after=9.0).write(tmp_path)

    surprised = judge_cell(make_cell(), tmp_path, FINE)
    expected = judge_cell(make_cell(Expectation(findings=("MPD704",))), tmp_path, FINE)

    assert (Outcome.FAILED, Outcome.PASSED) == (surprised.outcome, expected.outcome)


def test_a_trial_that_could_not_be_done_is_not_run_and_never_passed(tmp_path: Path):
    Observations(ending="skipped", message="no reader is installed").write(tmp_path)

    result = judge_cell(replace(make_cell(), trial="interop"), tmp_path, FINE)

    assert Outcome.NOT_RUN is result.outcome
    assert "no reader is installed" == result.message


@pytest.mark.parametrize("trial", ["soak", "limits", "interop", "versions", "curriculum"])
def test_a_trial_that_measured_nothing_never_passes(tmp_path: Path, trial):
    Observations(ending="measured").write(tmp_path)

    result = judge_cell(replace(make_cell(), trial=trial), tmp_path, FINE)

    assert Outcome.CRASHED is result.outcome
    assert "could not be checked" in result.message


@pytest.mark.parametrize(
    ("config", "options", "code"),
    [
        ({}, {}, "MPD706"),
        ({}, {}, "MPD717"),
        ({"merge_lora": True}, {}, "MPD403"),
        ({"report_to": ["tensorboard"]}, {}, "MPD719"),
        ({}, {"behaviour": "quick"}, "MPD716"),
        ({"method": "gptq"}, {}, "MPD710"),
        ({}, {}, "MPD722"),
        ({}, {}, "MPD726"),
        ({"merge_lora": True}, {}, "MPD729"),
        ({"save_steps": 2, "max_steps": 4}, {}, "MPD727"),
    ],
)
def test_what_a_cell_asks_for_must_have_been_answered(config, options, code):
    plain = make_cell()
    cell = replace(plain, config={**plain.config, **config}, options=options)

    assert code in required_probes(cell)
    if config or options:
        assert code not in required_probes(plain)


@pytest.mark.parametrize("config", [{"method": "gptq"}, {"fsdp": "full_shard"}])
def test_no_twin_is_required_where_there_is_none(config):
    required = required_probes(make_cell(**config))

    assert not [code for code in required if "MPD722" <= code <= "MPD729"]


def test_of_a_run_with_dropout_all_but_loss_and_gradient_is_compared():
    config = {"lora_dropout": 0.1, "merge_lora": True, "save_steps": 2, "max_steps": 4}
    required = required_probes(make_cell(**config))

    assert {f"MPD72{n}" for n in range(4, 10)} <= set(required)
    assert not {"MPD722", "MPD723"} & set(required)


def test_the_end_is_required_where_it_is_taught():
    assert "MPD705" in required_probes(make_cell(method="rm"))
    assert "MPD705" not in required_probes(make_cell(method="grpo"))
    assert "MPD704" in required_probes(make_cell(method="grpo"))
