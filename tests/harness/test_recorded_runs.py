"""Records that trainers really wrote: silence about ordinary ones, the right word about bad."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from harness.doctor import diagnose
from harness.findings import Severity, Status

FOLDER = Path(__file__).parent / "recorded_runs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
BAD = {
    "bad-rate": {"loss-diverged"},
    "bad-zero-rate": {"learning-rate-zero"},
    "bad-overfit": {"evaluation-rises", "epochs-beyond-data"},
}
VOCABULARY = 1024


def place(name, folder):
    shutil.copy(FOLDER / f"{name}.json", folder / "trainer_state.json")
    config = {"architectures": ["LlamaForCausalLM"], "vocab_size": VOCABULARY}
    if name != "reward":
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_a_real_record_is_judged_rightly(tmp_path, name):
    place(name, tmp_path)

    results = diagnose(tmp_path, select=["MPD9"]).probes

    assert not [one.reason for one in results if one.status is Status.CRASHED]
    found = {one.name: one.message for one in results if one.status is Status.FAILED}
    assert found.keys() == BAD.get(name, set()), found


@pytest.mark.parametrize("name", [one for one in NAMES if one not in BAD])
@pytest.mark.parametrize("kept", [1, 2, 3, 5, 8, 12, 20])
def test_a_run_that_is_cut_anywhere_gives_no_alarm(tmp_path, name, kept):
    place(name, tmp_path)
    path = tmp_path / "trainer_state.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    state["log_history"] = state["log_history"][:kept]
    path.write_text(json.dumps(state), encoding="utf-8")

    found = diagnose(tmp_path, select=["MPD9"]).findings

    assert not [one.message for one in found if one.severity is not Severity.NOTE]


@pytest.mark.parametrize("name", ["sft", "sft-full", "sft-ga"])
def test_the_loss_of_a_real_run_counted_four_times_is_found(tmp_path, name):
    place(name, tmp_path)
    path = tmp_path / "trainer_state.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    for row in state["log_history"]:
        if "loss" in row:
            row["loss"] *= 4
    path.write_text(json.dumps(state), encoding="utf-8")

    found = {one.name for one in diagnose(tmp_path, select=["MPD9"]).findings}

    assert found == {"loss-above-chance"}


def test_a_multiple_below_chance_shows_against_the_evaluation(tmp_path):
    place("sft", tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": ["LlamaForCausalLM"], "vocab_size": 10**9 - 1}),
        encoding="utf-8",
    )
    path = tmp_path / "trainer_state.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    for row in state["log_history"]:
        if "loss" in row:
            row["loss"] *= 2
    path.write_text(json.dumps(state), encoding="utf-8")

    found = {one.name for one in diagnose(tmp_path, select=["MPD9"]).findings}

    assert found == {"loss-counted-several-times"}


@pytest.mark.parametrize(
    ("summary", "name"),
    [
        ({"train_loss": math.nan}, "loss-not-finite"),
        ({"train_loss": 0.0}, "loss-zero"),
        ({"train_loss": 2.1}, ""),
    ],
)
@pytest.mark.parametrize("file", ["trainer_state.json", "all_results.json"])
def test_a_run_that_logged_only_its_summary_is_judged_by_it(tmp_path, summary, name, file):
    row = {**summary, "epoch": 3.0, "train_runtime": 10.0, "train_samples_per_second": 12.0}
    history = {"log_history": [{**row, "step": 300}], "global_step": 300, "max_steps": 300}
    value = history if file == "trainer_state.json" else row
    (tmp_path / file).write_text(json.dumps(value), encoding="utf-8")

    found = {one.name for one in diagnose(tmp_path, select=["MPD9"]).findings}

    assert found == ({name} if name else set())


@pytest.mark.parametrize(
    ("norms", "is_sick"),
    [
        ([math.nan] * 5 + [1.2], False),
        ([math.nan, math.nan, 1.0, 1.1, math.nan, 0.9], False),
        ([1.0, 1.1, math.nan, math.nan, math.nan], True),
        ([math.nan] * 6, True),
        ([1.0, math.nan, 1.0, math.nan, math.nan, 2.0, math.nan, math.nan], True),
    ],
)
def test_a_loss_scaler_may_overflow_and_a_run_may_not(tmp_path, norms, is_sick):
    rows = [
        {"step": step, "loss": 2.0 - 0.1 * step, "grad_norm": norm, "learning_rate": 1e-4}
        for step, norm in enumerate(norms, start=1)
    ]
    state = {"log_history": rows}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")

    found = {one.name for one in diagnose(tmp_path, select=["MPD9"]).findings}

    assert found == ({"loss-not-finite"} if is_sick else set())
