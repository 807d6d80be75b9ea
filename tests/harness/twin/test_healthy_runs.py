"""A healthy run of every method is its twin's, at every precision's tolerance."""

import pytest

from harness.twin import recording
from tests.harness.twin.runs import findings, run

METHODS = ("full", "lora", "qlora", "qat", "dpo", "ipo", "kto", "orpo", "grpo", "rm", "prm")


@pytest.mark.parametrize("method", [*METHODS, "multimodal"])
def test_every_method_is_its_twin_in_fp32(method, tmp_path):
    twin = run(tmp_path, method, gradient_accumulation=1 if method == "grpo" else 2)

    assert not findings(twin)
    assert not twin.unchecked
    assert len(twin.steps) == 2
    assert all(step.gradient_off is not None for step in twin.steps)


@pytest.mark.parametrize(
    ("method", "precision"),
    [("lora", "bf16"), ("dpo", "fp16"), ("full", "fp8"), ("prm", "fp8"), ("qlora", "bf16")],
)
def test_other_precisions_stay_within_what_rounding_explains(method, precision, tmp_path):
    twin = run(tmp_path, method, precision=precision)

    assert not findings(twin)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("full", {"packing": True, "max_steps": None, "epochs": 2, "batch_size": 1}),
        ("lora", {"tokens_per_batch": 160, "max_steps": None, "epochs": 2}),
        ("full", {"stream": True, "weight_decay": 0.1, "warmup_steps": 1}),
        ("full", {"zero_offload": True, "lr_scheduler": "cosine", "max_grad_norm": 0.1}),
        ("lora", {"gradient_checkpointing": True, "response_only": False}),
        ("lora", {"chat_template": False, "lr_scheduler": "polynomial"}),
        ("lora", {"use_dora": True, "merge_lora": True}),
        ("lora", {"use_rslora": True, "merge_lora": True, "precision": "bf16"}),
        ("qlora", {"merge_lora": True}),
        ("qlora", {"merge_lora": True, "quant": "int4", "quant_search": 4}),
        ("qlora", {"merge_lora": True, "quant": "mxfp4", "precision": "bf16"}),
        ("qlora", {"merge_lora": True, "quant": "int8", "quant_block_size": 32}),
        ("rm", {"merge_lora": True}),
        ("dpo", {"use_peft": False, "learning_rate": 1e-3}),
        ("lora", {"early_stopping": 1, "eval_fraction": 0.25, "eval_steps": 1, "max_steps": 3}),
        ("dpo", {"early_stopping": 1, "eval_fraction": 0.25, "eval_steps": 1, "max_steps": 3}),
        ("lora", {"unlearn": "npo", "retain_kl": 0.5, "gradient_accumulation": 2}),
        ("full", {"unlearn": "npo", "retain_kl": 0.5, "learning_rate": 1e-3}),
        ("qlora", {"unlearn": "gradient-ascent", "unlearn_weight": 0.5, "precision": "bf16"}),
        ("lora", {"unlearn": "npo", "packing": True, "batch_size": 1, "beta": 0.5}),
        ("lora", {"retain_kl": 1.0, "use_dora": True, "tokens_per_batch": 256}),
        ("full", {"unlearn": "gradient-ascent", "retain_kl": 1.0, "precision": "fp8"}),
        ("lora", {"unlearn": "npo", "early_stopping": 1, "eval_fraction": 0.25, "eval_steps": 1}),
    ],
)
def test_features_change_nothing_that_the_twin_computes(method, settings, tmp_path):
    twin = run(tmp_path, method, **settings)

    assert not findings(twin)
    assert not twin.unchecked
    assert not settings.get("merge_lora") or twin.merge == ()
    assert not settings.get("early_stopping") or twin.evaluations


def test_with_dropout_loss_and_gradient_alone_are_beyond_comparison(tmp_path):
    evaluates = {"early_stopping": 1, "eval_fraction": 0.25, "eval_steps": 1}
    twin = run(tmp_path, "lora", lora_dropout=0.2, **evaluates)

    assert {"loss", "gradient"} == set(twin.unchecked)
    assert "random" in twin.unchecked["loss"]
    assert [1, 2] == [one.step for one in twin.steps if one.weights_off is not None]
    assert twin.evaluations
    assert not findings(twin)


@pytest.mark.parametrize("limit", [1000, 1 << 19])
def test_of_what_is_too_large_nothing_is_compared_and_the_reason_is_said(
    limit, tmp_path, monkeypatch
):
    monkeypatch.setattr(recording, "MAX_BYTES", limit)
    if limit > 1000:
        monkeypatch.setattr(
            recording, "_count_bytes", lambda t: t.numel() * (t.dtype.is_floating_point or limit)
        )
    twin = run(tmp_path, "lora")

    assert str(limit) in twin.unchecked["weights"]
    assert ("batches" in twin.unchecked["weights"]) is (limit > 1000)
    assert not twin.steps
    assert not (tmp_path / "recording.pt").exists()
