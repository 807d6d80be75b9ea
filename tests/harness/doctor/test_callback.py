"""The trainer's callback: a real run is examined at each save, and ended when it is sick."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import Dataset
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from harness.doctor.callback import DoctorCallback
from harness.findings import Verdict
from mudpuppy.errors import ModelError, UsageError
from tests.harness.checkpoints import save_base


class Rows(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        row = torch.arange(index, index + 6)
        return {"input_ids": row, "labels": row}


class Break(TrainerCallback):
    """Writes a NaN into the model before the second save."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 2:
            next(model.parameters()).data[3, 0] = float("nan")


def train(tmp_path, doctor, *others):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(save_base(tmp_path / "base"))
    settings = TrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=4,
        save_steps=1,
        per_device_train_batch_size=2,
        learning_rate=1e-4,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=settings, train_dataset=Rows(), callbacks=[*others, doctor])
    trainer.train()
    return trainer


def test_each_checkpoint_is_examined(tmp_path):
    doctor = DoctorCallback(stop=True)
    train(tmp_path, doctor)
    assert {step: one.verdict for step, one in doctor.diagnoses.items()} == dict.fromkeys(
        [1, 2, 3, 4], Verdict.HEALTHY
    )


def test_a_sick_checkpoint_ends_the_run(tmp_path, caplog):
    doctor = DoctorCallback(stop=True, select=["MPD3"])
    trainer = train(tmp_path, doctor, Break())
    assert trainer.state.global_step == 2
    assert doctor.diagnoses[1].verdict is Verdict.HEALTHY
    assert [one.code for one in doctor.diagnoses[2].findings] == ["MPD301"]
    assert "MPD301 weights-nonfinite" in caplog.text


def test_what_cannot_be_used_is_refused_before_the_training(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        DoctorCallback(base=tmp_path / "no-such")
    with pytest.raises(UsageError, match="no probe is called"):
        DoctorCallback(select=["MPD9999"])
    with pytest.raises(UsageError, match=r"'bass'.*base"):
        DoctorCallback(bass=tmp_path)
    with pytest.raises(UsageError, match="no depth"):
        DoctorCallback(depth="abyss")


def save(doctor, tmp_path):
    """Call it as a trainer does after step 3."""
    (tmp_path / "checkpoint-3").mkdir()
    args = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    state = TrainerState(global_step=3)
    return doctor.on_save(args, state, TrainerControl())


def test_what_could_not_be_examined_is_told_and_ends_nothing(tmp_path, caplog):
    doctor = DoctorCallback(stop=True)
    assert not save(doctor, tmp_path).should_training_stop
    assert doctor.diagnoses[3].exit_code == 3
    assert "UNKNOWN" in caplog.text


def test_an_error_of_the_doctor_ends_no_training(tmp_path, caplog, monkeypatch):
    def fail(*args, **options):
        raise ModelError("the base is gone")

    doctor = DoctorCallback(stop=True)
    monkeypatch.setattr("harness.doctor.callback.diagnose", fail)
    assert not save(doctor, tmp_path).should_training_stop
    assert doctor.diagnoses == {}
    assert "checkpoint-3 could not be examined: the base is gone" in caplog.text


def test_the_fixture_tells_healthy_from_sick(tmp_path, assert_healthy):
    folder = save_base(tmp_path / "base")
    assert assert_healthy(folder).verdict is Verdict.HEALTHY
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(AssertionError, match="MPD101"):
        assert_healthy(folder)
