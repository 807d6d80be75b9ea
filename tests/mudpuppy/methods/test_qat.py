"""QAT through the engine: train, save, reload as the 16-bit model and as the int8 one."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mudpuppy.errors import ConfigError, UnsupportedCombination
from mudpuppy.provenance import read_provenance
from mudpuppy.quant.fake_quant import FakeQuantLinear, fake_quantised
from mudpuppy.quant.int8 import Int8Linear, load_int8
from mudpuppy.tiny import resolve_model
from tests.mudpuppy.methods.runs import Recorder, logits_of, run


@pytest.fixture(scope="module")
def base() -> str:
    return resolve_model("tiny:llama")


def test_the_int8_model_answers_as_the_model_that_was_trained(base, tmp_path):
    """Bit for bit in fp32; the trained model, seen through fake quantisation, does too."""
    seen = Recorder()
    losses, record = run(
        base, tmp_path / "out", method="qat", batch_size=8, learning_rate=1e-3, watcher=seen
    )
    int8 = load_int8(tmp_path / "out" / "int8")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")

    assert losses[-1] < losses[0]
    assert sum(isinstance(m, Int8Linear) for m in int8.modules()) == 14
    assert torch.equal(logits_of(int8, seen.row), seen.logits)
    assert not any(isinstance(m, FakeQuantLinear) for m in plain.modules())
    with fake_quantised(plain):
        assert torch.equal(logits_of(plain, seen.row), seen.logits)
    unrounded = logits_of(plain, seen.row)
    assert 0 < float((unrounded - seen.logits).norm() / seen.logits.norm()) < 0.1
    assert record.method == "qat"


def test_in_bf16_masters_are_rounded_not_what_was_saved(base, tmp_path):
    """Computing in bf16 leaves an error of bf16's size: 2 % of the norm, measured 0.5 %."""
    seen = Recorder()
    run(base, tmp_path / "out", method="qat", precision="bf16", watcher=seen)
    int8 = load_int8(tmp_path / "out" / "int8")
    assert int8.lm_head.weight.dtype == torch.bfloat16
    assert int8.config.use_cache is True
    difference = logits_of(int8, seen.row) - seen.logits
    assert float(difference.norm() / seen.logits.norm()) < 0.02
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert plain.dtype == torch.bfloat16


def test_the_folders_are_complete_and_say_what_they_are(base, tmp_path):
    run(base, tmp_path / "out", method="qat")
    outer = read_provenance(tmp_path / "out")
    inner = read_provenance(tmp_path / "out" / "int8")
    assert (outer["kind"], inner["kind"]) == ("model", "int8")
    for found in (outer, inner):
        quantisation = found["quantisation"]
        assert quantisation["bits"] == 8
        assert quantisation["scheme"].startswith("int8-symmetric")
        assert len(quantisation["layers"]) == 14
        assert all(0 < layer["error"] < 0.02 for layer in quantisation["layers"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "int8")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(base).chat_template


def test_it_generates_through_the_cache(base, tmp_path):
    run(base, tmp_path / "out", method="qat")
    model = load_int8(tmp_path / "out" / "int8")
    ids = torch.tensor([[5, 6, 7]])
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False
    )
    assert ids.shape[1] < made.shape[1] <= 7


def test_packing_changes_no_loss(base, tmp_path):
    """Every token has a scale of its own, so what shares its row does not matter: 1e-4."""
    losses, _ = run(base, tmp_path / "a", method="qat", batch_size=8, max_steps=1)
    packed, _ = run(base, tmp_path / "b", method="qat", packing=True, max_steps=1)
    assert packed == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("settings", [{"stream": True}, {"gradient_checkpointing": True}])
def test_memory_savers_change_nothing(base, tmp_path, settings):
    losses, _ = run(base, tmp_path / "a", method="qat")
    again, _ = run(base, tmp_path / "b", method="qat", **settings)
    assert again == losses


def test_early_stopping_keeps_the_best_weights(base, tmp_path):
    """The int8 model is made of what was kept, not of what came last."""
    seen = Recorder()
    _, record = run(
        base,
        tmp_path / "out",
        method="qat",
        early_stopping=1,
        eval_fraction=0.25,
        eval_steps=1,
        learning_rate=0.2,
        max_steps=6,
        watcher=seen,
    )
    assert record.stopped_early
    assert torch.equal(logits_of(load_int8(tmp_path / "out" / "int8"), seen.row), seen.logits)


def test_fp8_is_refused(base, tmp_path):
    with pytest.raises(UnsupportedCombination, match="MP-R30"):
        run(base, tmp_path / "out", method="qat", precision="fp8")
    assert not (tmp_path / "out").exists()


RANGES = {
    "static": {"qat_activations": "tensor"},
    "learned": {"qat_ranges": "learned"},
    "everything": {
        "qat_activations": "tensor",
        "qat_ranges": "learned",
        "qat_warmup": 0.3,
        "qat_freeze": 0.7,
    },
}


@pytest.mark.parametrize("kind", RANGES)
def test_the_int8_model_of_ranges_that_last_answers_as_the_model_that_was_trained(
    base, tmp_path, kind
):
    seen = Recorder()
    _, record = run(
        base,
        tmp_path / "out",
        method="qat",
        batch_size=8,
        learning_rate=1e-3,
        watcher=seen,
        **RANGES[kind],
    )
    int8 = load_int8(tmp_path / "out" / "int8")
    assert torch.equal(logits_of(int8, seen.row), seen.logits)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not any("ranges" in name for name in plain.state_dict())
    config = json.loads((tmp_path / "out" / "int8" / "config.json").read_text())
    inputs = config["quantization_config"]["config_groups"]["group_0"]["input_activations"]
    is_static = kind != "learned"
    assert (inputs["strategy"], inputs["dynamic"]) == (
        ("tensor", False) if is_static else ("token", True)
    )
    assert record.quantisation["ranges"] == ("observed" if kind == "static" else "learned")
    assert ("static" in record.quantisation["scheme"]) is is_static


@pytest.mark.parametrize(
    "settings", [{"stream": True}, {"gradient_checkpointing": True}, {"zero_offload": True}]
)
def test_memory_savers_change_no_range(base, tmp_path, settings):
    losses, _ = run(base, tmp_path / "a", method="qat", **RANGES["everything"])
    again, _ = run(base, tmp_path / "b", method="qat", **RANGES["everything"], **settings)
    assert again == losses


def test_ranges_that_would_stand_still_before_rounding_are_refused(base, tmp_path):
    with pytest.raises(ConfigError, match="qat_warmup"):
        run(base, tmp_path / "out", method="qat", qat_warmup=0.5, qat_freeze=0.5)


@pytest.mark.parametrize("settings", [{"qat_activations": "tensor"}, {"qat_ranges": "learned"}])
def test_another_method_has_no_ranges(base, tmp_path, settings):
    with pytest.raises(UnsupportedCombination, match="MP-R33"):
        run(base, tmp_path / "out", method="full", **settings)
