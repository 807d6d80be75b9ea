"""What the trainers of TRL leave is healthy: models, adapters, checkpoints and tokenizers."""

from __future__ import annotations

import pytest
import trl
from datasets import Dataset
from peft import LoraConfig

from mudpuppy.tiny.families import build_family
from tests.harness.test_healthy_stays_healthy import assert_clean

HOW = {
    "report_to": [],
    "max_steps": 2,
    "save_steps": 1,
    "per_device_train_batch_size": 2,
    "use_cpu": True,
    "learning_rate": 1e-3,
    "disable_tqdm": True,
}
ASKED = [{"role": "user", "content": "hello there"}]
GOOD = [{"role": "assistant", "content": "hello you"}]
BAD = [{"role": "assistant", "content": "go away"}]
ROWS = {
    "SFT": [{"messages": ASKED + GOOD}],
    "DPO": [{"prompt": ASKED, "chosen": GOOD, "rejected": BAD}],
    "Reward": [{"prompt": ASKED, "chosen": GOOD, "rejected": BAD}],
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build_family("llama", tmp_path_factory.mktemp("trainers") / "base")


@pytest.mark.parametrize("adapted", [True, False])
@pytest.mark.parametrize("kind", ROWS)
def test_what_a_trainer_leaves_is_healthy(tmp_path, base, kind, adapted):
    settings = getattr(trl, f"{kind}Config")(str(tmp_path / "out"), **HOW)
    reward = {"task_type": "SEQ_CLS", "modules_to_save": ["score"]} if kind == "Reward" else {}
    lora = LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj"], **reward})
    trainer = getattr(trl, f"{kind}Trainer")(
        str(base),
        args=settings,
        train_dataset=Dataset.from_list(ROWS[kind] * 4),
        peft_config=lora if adapted else None,
    )
    trainer.train()
    # A trainer that was stopped leaves nothing but its checkpoints.
    before = assert_clean(tmp_path / "out")
    assert [s["subject"] for s in before.facts["subjects"]] == ["checkpoint-1", "checkpoint-2"]
    trainer.save_model()
    assert len(assert_clean(tmp_path / "out").facts["subjects"]) == 3
