"""mudpuppy.json and the traces of a run: swapped, disputed, unfinished, or as they should be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from harness.doctor import diagnose
from harness.findings import Severity, Status
from mudpuppy.provenance import fingerprint_model, hash_names
from mudpuppy.quant.int8 import quantise_weights, save_int8
from tests.harness.checkpoints import (
    DTYPES,
    assert_clean,
    copy,
    edit_json,
    found_in,
    save_adapter,
    save_base,
)

LABELS = {"samples": 8, "samples_ending_in_eos": 8, "truncated": 0}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("provenance") / "base")


@pytest.fixture
def adapter(base, tmp_path):
    """An adapter with the record that the engine writes beside it."""
    folder = save_adapter(tmp_path / "out", base)
    names = [
        key.replace(".weight", ".default.weight")
        for key in load_file(folder / "adapter_model.safetensors")
    ]
    described = {"name": "default", "r": 4, "lora_alpha": 8}
    trainable = {"count": len(names), "names_hash": hash_names(names), "adapter": described}
    record = {
        "kind": "adapter",
        "method": "lora",
        "base": {"name": "base", "path": str(base), "fingerprint": fingerprint_model(base)},
        "trainable": trainable,
        "labels": LABELS,
    }
    (folder / "mudpuppy.json").write_text(json.dumps(record))
    return folder


def change(folder: Path, key: str, **changes: object) -> None:
    """Set keys of one part of the record."""
    record = json.loads((folder / "mudpuppy.json").read_text())
    edit_json(folder / "mudpuppy.json", **{key: {**record[key], **changes}})


def finding(folder: Path, code: str):
    """Return the result of one probe on a folder."""
    (result,) = diagnose(folder, select=[code]).probes
    return result


def test_a_record_that_fits_is_left_in_peace(adapter):
    found = {r.code: r.status for r in assert_clean(adapter).probes}
    assert [found[code] for code in ("MPD407", "MPD408", "MPD409")] == [Status.PASSED] * 3


@pytest.mark.parametrize("kind", ["merged", "model", "gptq", "int8"])
def test_the_record_of_another_kind_is_found(adapter, kind):
    edit_json(adapter / "mudpuppy.json", kind=kind)
    assert found_in(adapter) == {"provenance-swapped"}


def test_the_record_of_another_adapter_is_found_by_its_rank_and_its_names(adapter):
    change(adapter, "trainable", adapter={"name": "default", "r": 16})
    assert "records r 16, 4 lies here" in finding(adapter, "MPD407").message
    change(adapter, "trainable", adapter={"name": "default"}, names_hash="0" * 16)
    assert "names of the trained parameters" in finding(adapter, "MPD407").message
    change(adapter, "trainable", adapter={"name": "default"}, names_hash=None)
    assert finding(adapter, "MPD407").status is Status.PASSED


@pytest.mark.parametrize("kind", ["model", "merged", "int8", "gptq", "adapter"])
def test_the_kinds_of_models_are_told_apart(tmp_path, base, kind):
    folder = copy(base, tmp_path / "m")
    (folder / "mudpuppy.json").write_text(json.dumps({"kind": kind}))
    plain = kind in ("model", "merged")
    assert finding(folder, "MPD407").status is (Status.PASSED if plain else Status.FAILED)
    model = AutoModelForCausalLM.from_pretrained(base)
    save_int8(model, None, tmp_path / "i", quantise_weights(model), DTYPES["fp32"])
    (tmp_path / "i" / "mudpuppy.json").write_text(json.dumps({"kind": kind}))
    fits = kind == "int8"
    assert finding(tmp_path / "i", "MPD407").status is (Status.PASSED if fits else Status.FAILED)


def test_a_base_that_is_another_model_is_an_error(adapter, tmp_path):
    other = save_base(tmp_path / "other", "llama", "bf16")
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(other))
    found = finding(adapter, "MPD408")
    assert found.severity is Severity.HIGH
    assert str(other) in found.message
    assert found.evidence[1].found.endswith("/base")


def test_the_same_base_elsewhere_is_the_same_base(adapter, base, tmp_path):
    moved = copy(base, tmp_path / "moved-and-renamed")
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(moved))
    assert finding(adapter, "MPD408").status is Status.PASSED
    change(adapter, "base", name="Owner/Base", path="/x/models--Owner--Base/snapshots/abc")
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="owner/base")
    assert finding(adapter, "MPD408").status is Status.PASSED


def test_another_name_alone_is_a_warning(adapter):
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="owner/another")
    assert finding(adapter, "MPD408").severity is Severity.HIGH


def test_a_training_that_taught_no_end_is_found(adapter):
    change(adapter, "labels", samples_ending_in_eos=0, truncated=8)
    assert found_in(adapter) == {"end-never-taught"}
    edit_json(adapter / "mudpuppy.json", method="dpo")
    assert finding(adapter, "MPD409").status is Status.SKIPPED
    edit_json(adapter / "mudpuppy.json", method="lora", labels=None)
    assert finding(adapter, "MPD409").status is Status.SKIPPED


def step(number: int) -> str:
    return json.dumps({"step": number, "epoch": 0.1, "grad_norm": 1.0, "elapsed_s": 0.5}) + "\n"


RECORD = json.dumps({"method": "lora", "precision": "fp32", "choices": {}})


@pytest.mark.parametrize("rest", ["", '{"step": 4, "ep'])
def test_a_run_that_was_stopped_is_found_and_its_last_step_is_told(tmp_path, base, rest):
    out = tmp_path / "out"
    save_adapter(out / "checkpoint-2", base)
    (out / "steps.jsonl").write_text(step(1) + step(2) + step(3) + rest)
    found = diagnose(out)
    assert [r.name for r in found.findings] == ["run-unfinished"]
    assert "stopped after step 3" in found.findings[0].message
    assert "checkpoint-2" in found.findings[0].remedy
    assert [s["subject"] for s in found.facts["subjects"]] == [".", "checkpoint-2"]
    save_adapter(out, base)
    assert "not known to be its result" in diagnose(out).findings[0].message
    (out / "mudpuppy.json").write_text("{}")
    assert_clean(out)


def test_a_staging_folder_is_found_beside_a_finished_run_too(adapter):
    (adapter / ".saving-4711").mkdir()
    found = finding(adapter, "MPD111")
    assert "left .saving-4711 beside a finished run" in found.message
    (adapter / ".saving-4711").rmdir()
    assert finding(adapter, "MPD111").status is Status.SKIPPED


def test_a_record_without_a_manifest_and_an_empty_log_are_traces(tmp_path):
    (tmp_path / "run.json").write_text(RECORD)
    assert finding(tmp_path, "MPD111").status is Status.FAILED
    (tmp_path / "run.json").unlink()
    (tmp_path / "steps.jsonl").write_text("")
    assert "it stopped before" in finding(tmp_path, "MPD111").message


@pytest.mark.parametrize("text", ['{"step": 1}\n', "not json\n", "[1]\n", "[" * 9000, "\x00\xff"])
def test_logs_of_other_programs_are_no_traces(tmp_path, base, text):
    out = tmp_path / "out"
    save_adapter(out / "checkpoint-2", base)
    (out / "steps.jsonl").write_text(text)
    (out / "run.json").write_text(text)
    assert_clean(out)


def test_the_folder_of_a_cell_is_finished_when_its_checkpoint_is(tmp_path, adapter):
    (tmp_path / "steps.jsonl").write_text(step(1))
    (tmp_path / "run.json").write_text(RECORD)
    assert finding(tmp_path, "MPD111").status is Status.FAILED
    adapter.rename(tmp_path / "checkpoint")
    assert finding(tmp_path, "MPD111").status is Status.PASSED
