"""The trainer's callback: a real run is examined at each save, and ended when it is sick."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from harness.callback import DoctorCallback
from harness.findings import Verdict
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


def test_the_fixture_tells_healthy_from_sick(tmp_path, assert_healthy):
    folder = save_base(tmp_path / "base")
    assert assert_healthy(folder).verdict is Verdict.HEALTHY
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(AssertionError, match="MPD101"):
        assert_healthy(folder)
