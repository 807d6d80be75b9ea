"""Records of runs are read whoever wrote them, bounded, and by one folder of an output."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.doctor import diagnose
from harness.evidence.source import CheckpointEvidence, Options
from harness.findings import Status
from harness.registry import Missing, NotApplicable
from harness.selftest.records import sink, write_state

RECORD = ["MPD9"]


def find(folder, **options):
    return CheckpointEvidence(folder, Options(**options)).get("training_log")


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_the_state_of_transformers_is_read(tmp_path):
    write_state(tmp_path, {"loss": sink(2, 1)}, steps=100, evaluations={50: 1.5, 100: 1.4})

    log = find(tmp_path)

    assert [point.step for point in log.points("loss")] == list(range(10, 101, 10))
    assert log.values("eval_loss") == (1.5, 1.4)
    assert (log.finished_steps, log.planned_steps, log.epochs) == (100, 100, 3.0)
    assert log.is_language
    assert not log.is_preference
    assert not log.is_generating


def test_our_own_log_is_read(tmp_path):
    rows = [
        {
            "step": step,
            "epoch": step / 4,
            "loss": None if step == 3 else 2.0,
            "grad_norm": 1.0,
            "learning_rate": 1e-4,
            "eval_loss": None,
            "metrics": {"rewards/margins": 0.5},
        }
        for step in (1, 2, 3)
    ]
    write_rows(tmp_path / "steps.jsonl", [*rows, {"step": 3, "loss": None, "eval_loss": 1.2}])

    log = find(tmp_path)

    assert log.values("loss")[:2] == (2.0, 2.0)
    assert math.isnan(log.values("loss")[2])
    assert log.values("eval_loss") == (1.2,)
    assert log.values("rewards/margins") == (0.5, 0.5, 0.5)


def test_the_log_of_llama_factory_is_read(tmp_path):
    row = {"current_steps": 5, "total_steps": 60, "loss": 1.25, "lr": 1e-5, "epoch": 0.2}
    write_rows(tmp_path / "trainer_log.jsonl", [row, {**row, "current_steps": 10}])

    log = find(tmp_path)

    assert log.values("learning_rate") == (1e-5, 1e-5)
    assert log.planned_steps == 60


def test_numbers_are_read_however_they_are_written(tmp_path):
    values = ["nan", "NaN", "-inf", "1e-3", 3, True, [1], "x", None, 10**400]
    rows = [{"step": n, "grad_norm": value} for n, value in enumerate(values)]
    text = json.dumps({"log_history": rows})
    (tmp_path / "trainer_state.json").write_text(text, encoding="utf-8")

    found = find(tmp_path).values("grad_norm")

    assert math.isnan(found[0])
    assert math.isnan(found[1])
    assert found[2:] == (-math.inf, 1e-3, 3.0)


def test_the_later_of_two_points_at_one_step_counts(tmp_path):
    steps = [1, 2, 3, 2, 3, 4]
    rows = [{"step": step, "loss": float(n)} for n, step in enumerate(steps)]
    write_rows(tmp_path / "trainer_log.jsonl", rows)

    assert find(tmp_path).values("loss") == (0.0, 3.0, 4.0, 5.0)


def test_one_folder_of_an_output_speaks_for_the_run(tmp_path):
    for step in (100, 200):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
        write_state(folder, {"loss": lambda done: 0.0, "grad_norm": lambda done: 0.0}, steps=step)

    found = diagnose(tmp_path, select=RECORD).findings
    alone = diagnose(tmp_path / "checkpoint-100", select=RECORD).findings
    (tmp_path / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    whole = diagnose(tmp_path, select=RECORD).findings

    assert [one.subject for one in found] == ["checkpoint-200"]
    assert [one.subject for one in alone] == ["."]
    assert [one.subject for one in whole] == ["."]
    assert whole[0].evidence[0].file == "checkpoint-200/trainer_state.json"


def test_no_record_is_nothing_to_check(tmp_path):
    with pytest.raises(NotApplicable):
        find(tmp_path)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 5000, b'{"log_history":{}}'])
def test_a_record_that_is_none_ends_no_diagnosis(tmp_path, raw):
    (tmp_path / "trainer_state.json").write_bytes(raw)

    if raw == b'{"log_history":{}}':
        assert not find(tmp_path).series
    else:
        with pytest.raises(Missing, match=r"trainer_state\.json"):
            find(tmp_path)


def test_a_record_that_leads_out_of_the_folder_is_not_read(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    write_state(outside, {"loss": sink(2, 1)})
    (inside / "trainer_state.json").symlink_to(outside / "trainer_state.json")

    with pytest.raises(NotApplicable):
        find(inside)


def test_asked_settings_come_from_the_card(tmp_path):
    write_state(tmp_path, {"loss": sink(2, 1)})
    card = "# x\n- learning_rate: 1\n### Training hyperparameters\n\n- learning_rate: 0.0002\n"
    (tmp_path / "README.md").write_text(card + "- optimizer: AdamW\n\n### More\n- seed: 3\n")

    log = find(tmp_path)

    assert log.asked["learning_rate"] == "0.0002"
    assert "seed" not in log.asked
    assert log.asked_in == "README.md"


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just("nan")
)
ROWS = st.lists(
    st.dictionaries(
        st.sampled_from(
            [
                *("step", "loss", "grad_norm", "learning_rate", "eval_loss", "epoch", "kl"),
                *("reward", "reward_std", "rewards/margins", "logps/chosen", "rewards/chosen"),
                *("completions/clipped_ratio", "entropy", "train_runtime"),
            ]
        ),
        SCALARS,
    ),
    max_size=40,
)


@settings(max_examples=150, suppress_health_check=list(HealthCheck), deadline=None)
@given(rows=ROWS, steps=SCALARS, best=SCALARS, numbered=st.booleans())
def test_no_record_makes_a_probe_crash(tmp_path, rows, steps, best, numbered):
    if numbered:
        rows = [{**row, "step": n} for n, row in enumerate(rows)]
    state = {"log_history": rows, "global_step": steps, "max_steps": steps, "epoch": best}
    state["best_model_checkpoint"] = best
    (tmp_path / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")

    results = diagnose(tmp_path, select=RECORD).probes

    assert not [one.reason for one in results if one.status is Status.CRASHED]
    json.dumps([one.evidence for one in results], default=vars, allow_nan=False)
