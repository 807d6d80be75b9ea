"""Whole outputs: which checkpoints of one are examined, and what the record of a run explains."""

from __future__ import annotations

import json

import pytest
from transformers import AutoModelForCausalLM

from harness.doctor import diagnose
from harness.findings import Status
from harness.selftest.edit import cut_file
from mudpuppy.quant.int8 import quantise_weights, save_int8
from tests.harness.checkpoints import (
    DTYPES,
    assert_clean,
    copy,
    edit_tensors,
    round_int4,
    save_adapter,
    save_base,
    save_merged,
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("bases") / "llama")


def test_every_checkpoint_of_an_output_is_examined_with_what_lies_beside_it(tmp_path, llama):
    out = save_adapter(tmp_path / "out", llama)
    for step, scale in ((2, 0.015), (10, 0.02)):  # a run moves between two saves
        save_adapter(out / f"checkpoint-{step}", llama, scale=scale)
    save_merged(out / "merged", llama, out, dtype="bf16")

    found = assert_clean(out)

    subjects = [facts["subject"] for facts in found.facts["subjects"]]
    assert subjects == [".", "checkpoint-2", "checkpoint-10", "merged"]
    lineage = [
        r for r in found.probes if r.name == "merge-without-effect" and r.subject == "merged"
    ]
    assert lineage[0].status is Status.PASSED


def test_damage_in_one_checkpoint_of_an_output_names_that_checkpoint(tmp_path, llama):
    out = save_adapter(tmp_path / "out", llama)
    copy(out, out / "checkpoint-5")
    cut_file(out / "checkpoint-5/adapter_model.safetensors", 0.5)

    findings = diagnose(out).findings

    assert [(r.name, r.subject) for r in findings] == [("weights-truncated", "checkpoint-5")]


def test_a_qlora_merge_on_the_dequantised_base_is_healthy_by_its_provenance(tmp_path, llama):
    quantised = save_base(tmp_path / "q")
    edit_tensors(
        quantised, lambda t: {k: round_int4(v) if "_proj" in k else v for k, v in t.items()}
    )
    adapter = save_adapter(tmp_path / "out", llama)
    merged = save_merged(tmp_path / "out/merged", quantised, adapter)
    scheme = {"scheme": "int4-symmetric-blockwise", "bits": 4, "block_size": 16}
    for folder, kind in ((adapter, "adapter"), (merged, "merged")):
        (folder / "mudpuppy.json").write_text(
            json.dumps({"kind": kind, "quantisation": scheme, "precision": "fp32"})
        )

    assert_clean(tmp_path / "out", base=llama)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_an_int8_model_is_healthy_of_itself_and_against_its_base(tmp_path, llama, dtype):
    model = AutoModelForCausalLM.from_pretrained(llama)
    save_int8(model, None, tmp_path / "int8", quantise_weights(model), DTYPES[dtype])

    assert_clean(tmp_path / "int8")
    assert_clean(tmp_path / "int8", base=llama)


def test_a_merge_by_peft_is_traced_and_not_only_silent(tmp_path, llama):
    adapter = save_adapter(tmp_path / "a", llama, "dora")
    merged = save_merged(tmp_path / "m", llama, adapter, dtype="bf16")

    found = assert_clean(merged, base=llama, adapter=adapter)

    traced = next(r for r in found.probes if r.name == "merge-wrongly-scaled")
    assert traced.status is Status.PASSED
