"""Checkpoints that the real libraries made, in all their variety, have no finding at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

from harness.doctor import diagnose, summarise
from harness.findings import Severity, Status, Verdict
from mudpuppy.quant.int8 import quantise_weights, save_int8
from tests.harness.checkpoints import (
    ADAPTERS,
    ADVICE,
    DTYPES,
    FAMILIES,
    SIZES,
    SPECIAL,
    edit_json,
    edit_tensors,
    round_int4,
    save_adapter,
    save_base,
    save_merged,
    save_tokenizer,
)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    return {name: save_base(root / name, name) for name in FAMILIES}


def assert_clean(path: Path, **options):
    diagnosis = diagnose(path, **options)
    bad = [
        r
        for r in diagnosis.probes
        if r.status is Status.CRASHED
        or (r.status is Status.FAILED and not (r.severity is Severity.NOTE and r.name in ADVICE))
    ]
    assert not bad, summarise(diagnosis)
    assert diagnosis.verdict is Verdict.HEALTHY, diagnosis.why
    return diagnosis


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_saved_model_is_healthy(tmp_path, family, dtype):
    assert_clean(save_base(tmp_path / "m", family, dtype))


@pytest.mark.parametrize("family", ["llama", "llama-tied", "mixtral"])
def test_a_sharded_model_is_healthy(tmp_path, family):
    folder = save_base(tmp_path / "m", family, max_shard_size="20kB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert_clean(folder)


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("with_base", [True, False])
def test_an_adapter_is_healthy(tmp_path, bases, kind, with_base):
    base = bases[ADAPTERS[kind].get("base", "llama")]
    folder = save_adapter(tmp_path / "a", base, kind)
    if not with_base:
        edit_json(folder / "adapter_config.json", base_model_name_or_path="someone/some-model")
    assert_clean(folder)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "phi3"])
def test_an_all_linear_adapter_of_any_family_is_healthy(tmp_path, bases, family):
    assert_clean(save_adapter(tmp_path / "a", bases[family], "all-linear"))


@pytest.mark.parametrize("kind", [k for k in ADAPTERS if k != "lora-bias"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_merge_by_peft_is_healthy(tmp_path, bases, kind, dtype):
    adapter = save_adapter(tmp_path / "a", bases["llama"], kind)
    merged = save_merged(tmp_path / "m", bases["llama"], adapter, dtype=dtype)
    found = assert_clean(merged, base=bases["llama"], adapter=adapter)
    lineage = next(r for r in found.probes if r.name == "merge-wrongly-scaled")
    assert lineage.status is Status.PASSED


@pytest.mark.parametrize("scale", [1e-5, 1e-4, 1e-3, 3e-3, 0.1])
@pytest.mark.parametrize("dtypes", [("fp32", "bf16"), ("bf16", "bf16"), ("bf16", "fp32")])
def test_a_merge_of_any_size_is_healthy(tmp_path, scale, dtypes):
    base = save_base(tmp_path / "b", "llama", dtypes[0])
    adapter = save_adapter(tmp_path / "a", base, "plain", scale=scale)
    merged = save_merged(tmp_path / "m", base, adapter, dtype=dtypes[1])
    assert_clean(merged, base=base, adapter=adapter)


@pytest.mark.parametrize("family", ["llama-tied", "qwen2", "gemma3", "mistral"])
def test_a_merge_of_other_families_is_healthy(tmp_path, bases, family):
    adapter = save_adapter(tmp_path / "a", bases[family], "embeddings")
    merged = save_merged(tmp_path / "m", bases[family], adapter)
    assert_clean(merged, base=bases[family], adapter=adapter)


def test_a_merge_into_fused_experts_is_healthy(tmp_path, bases):
    adapter = save_adapter(tmp_path / "a", bases["mixtral"], "all-linear")
    merged = save_merged(tmp_path / "m", bases["mixtral"], adapter)
    assert_clean(merged, base=bases["mixtral"], adapter=adapter)


def test_default_special_ids_of_a_class_are_not_judged_without_a_tokenizer(tmp_path):
    folder = save_base(tmp_path / "m")
    edit_json(folder / "config.json", eos_token_id=50_000)
    assert_clean(folder)


def test_a_full_fine_tune_is_healthy_against_its_base(tmp_path, bases):
    folder = save_base(tmp_path / "m")
    torch.manual_seed(3)
    edit_tensors(folder, lambda t: {k: v + 1e-3 * torch.randn_like(v) for k, v in t.items()})
    assert_clean(folder, base=bases["llama"])


@pytest.mark.parametrize("tokens", [90, 96])
def test_a_padded_vocabulary_is_healthy(tmp_path, tokens):
    folder = save_base(tmp_path / "m")
    save_tokenizer(folder, tokens)
    assert_clean(folder)


def test_an_adapter_with_a_tokenizer_is_healthy(tmp_path, bases):
    folder = save_adapter(tmp_path / "a", bases["llama"], "embeddings")
    save_tokenizer(folder, 96)
    assert_clean(folder)


def test_a_reward_model_with_a_score_head_is_healthy(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, **SPECIAL, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "m")
    assert_clean(tmp_path / "m")


def test_a_trainer_output_with_checkpoints_is_healthy(tmp_path, bases):
    out = save_adapter(tmp_path / "out", bases["llama"])
    for step in (2, 10):
        folder = save_adapter(out / f"checkpoint-{step}", bases["llama"])
        torch.save({"state": {0: {"exp_avg": torch.zeros(3)}}}, folder / "optimizer.pt")
        torch.save([1, 2], folder / "rng_state.pth")
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    save_merged(out / "merged", bases["llama"], out, dtype="bf16")
    found = assert_clean(out)
    subjects = [facts["subject"] for facts in found.facts["subjects"]]
    assert subjects == [".", "checkpoint-2", "checkpoint-10", "merged"]
    lineage = [
        r for r in found.probes if r.name == "merge-without-effect" and r.subject == "merged"
    ]
    assert lineage[0].status is Status.PASSED


def test_a_qlora_merge_on_the_dequantised_base_is_healthy_by_its_provenance(tmp_path, bases):
    quantised = save_base(tmp_path / "q")
    edit_tensors(
        quantised,
        lambda t: {k: round_int4(v) if "_proj" in k else v for k, v in t.items()},
    )
    adapter = save_adapter(tmp_path / "out", bases["llama"], "plain")
    merged = save_merged(tmp_path / "out" / "merged", quantised, adapter)
    scheme = {"scheme": "int4-symmetric-blockwise", "bits": 4, "block_size": 16}
    for folder, kind in ((adapter, "adapter"), (merged, "merged")):
        (folder / "mudpuppy.json").write_text(
            json.dumps({"kind": kind, "quantisation": scheme, "precision": "fp32"})
        )
    assert_clean(tmp_path / "out", base=bases["llama"])


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_an_int8_model_of_this_project_is_healthy(tmp_path, bases, dtype):
    model = AutoModelForCausalLM.from_pretrained(bases["llama"])
    folder = tmp_path / "out" / "int8"
    save_int8(model, None, folder, quantise_weights(model), DTYPES[dtype])
    assert_clean(folder)
    assert_clean(folder, base=bases["llama"])
    save_base(tmp_path / "out")
    found = assert_clean(tmp_path / "out")
    assert [facts["subject"] for facts in found.facts["subjects"]] == [".", "int8"]
    edit_tensors(folder, lambda t: {k: v for k, v in t.items() if "1.mlp.up_proj" not in k})
    assert "missing-tensors" in {r.name for r in diagnose(folder).findings}
