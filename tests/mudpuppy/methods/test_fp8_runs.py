"""fp8 through the engine: it trains, leaves no trace in what is saved, and says what it is."""

import json
import math

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from mudpuppy.data.samples import PreferenceSample
from mudpuppy.errors import UnsupportedCombination
from mudpuppy.quant.fp8 import Fp8Linear
from mudpuppy.tiny import resolve_model
from tests.mudpuppy.methods.runs import QUESTIONS, Recorder, logits_of, run


@pytest.fixture(scope="module")
def base() -> str:
    return resolve_model("tiny:llama")


class Spy(Recorder):
    """Keeps also which layers multiplied in fp8 while the model trained."""

    def on_fitted(self, model):
        self.names = [name for name, m in model.named_modules() if isinstance(m, Fp8Linear)]
        self.dtypes = {p.dtype for p in model.parameters() if p.requires_grad}
        self.model = model
        super().on_fitted(model)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_loss_follows_that_of_bf16(base, tmp_path, method):
    """Within 2 % at every step; not equal, or it would not be fp8."""
    spy = Spy()
    settings = {"method": method, "max_steps": 8, "batch_size": 8, "learning_rate": 3e-3}
    losses, record = run(base, tmp_path / "fp8", precision="fp8", watcher=spy, **settings)
    exact, _ = run(base, tmp_path / "bf16", precision="bf16", **settings)
    assert len(spy.names) == 14
    assert spy.dtypes == {torch.float32}
    assert not any(isinstance(m, Fp8Linear) for m in spy.model.modules())
    assert losses == pytest.approx(exact, rel=0.02)
    assert losses != exact
    assert losses[-1] < losses[0]
    choice = record.choices["fp8"]
    assert (choice.value, "emulated on cpu" in choice.reason) == ("emulated", True)


def test_a_full_run_leaves_a_plain_bf16_model(base, tmp_path):
    run(base, tmp_path / "out", method="full", precision="fp8")
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    assert "fp8" not in (tmp_path / "out" / "config.json").read_text()
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
    assert type(model.model.layers[0].mlp.up_proj) is nn.Linear
    manifest = json.loads((tmp_path / "out" / "mudpuppy.json").read_text())
    assert manifest["precision"] == "fp8"
    assert manifest["run"]["choices"]["fp8"]["value"] == "emulated"


def test_an_adapter_runs_on_the_plain_base(base, tmp_path):
    """Its logits differ from those in fp8 by what fp8 rounds: under 10 % of the norm."""
    seen = Recorder()
    run(base, tmp_path / "out", method="lora", precision="fp8", merge_lora=True, watcher=seen)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    adapted = PeftModel.from_pretrained(plain, tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged")
    logits = logits_of(adapted, seen.row)
    assert 0 < float((logits - seen.logits).norm() / logits.norm()) < 0.1
    assert float((logits_of(merged, seen.row) - logits).norm() / logits.norm()) < 0.02


@pytest.mark.parametrize("settings", [{"stream": True}, {"gradient_checkpointing": True}])
def test_memory_savers_change_nothing(base, tmp_path, settings):
    losses, _ = run(base, tmp_path / "a", method="full", precision="fp8")
    again, _ = run(base, tmp_path / "b", method="full", precision="fp8", **settings)
    assert again == losses


@pytest.mark.parametrize("use_peft", [True, False])
def test_preferences_start_where_policy_and_reference_agree(base, tmp_path, use_peft):
    """DPO's first loss is ln 2 only if both answer in the same arithmetic."""
    samples = [
        PreferenceSample(
            line=line,
            prompt=({"role": "user", "content": question},),
            chosen=({"role": "assistant", "content": answer},),
            rejected=({"role": "assistant", "content": "I bark."},),
        )
        for line, (question, answer) in enumerate(QUESTIONS, start=1)
    ]
    losses, _ = run(
        base,
        tmp_path / "out",
        samples=samples,
        method="dpo",
        precision="fp8",
        use_peft=use_peft,
        batch_size=8,
        learning_rate=1e-2,
    )
    assert losses[0] == pytest.approx(math.log(2), rel=1e-6)
    assert losses[-1] < losses[0] / 1.5


def test_packed_rows_train_too(base, tmp_path):
    """Not the same losses: fp8 has one scale for a batch, and batches are others. Within 5 %."""
    losses, _ = run(base, tmp_path / "plain", method="full", precision="fp8", batch_size=8)
    packed, _ = run(base, tmp_path / "packed", method="full", precision="fp8", packing=True)
    assert packed[0] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.parametrize("method", ["qlora", "gptq"])
def test_weights_with_a_grid_of_their_own_are_refused(base, tmp_path, method):
    with pytest.raises(UnsupportedCombination, match="MP-R30"):
        run(base, tmp_path / "out", method=method, precision="fp8")
