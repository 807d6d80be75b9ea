"""What findings and verdicts say is right for the very damage, and no question stays unanswered."""

from __future__ import annotations

import json

import pytest
import torch

from harness.doctor import diagnose
from harness.findings import Verdict
from mudpuppy.errors import DatasetError
from reports.commands.doctor import main
from reports.text import escape_markdown
from tests.harness.checkpoints import copy, edit_json, edit_tensors, save_adapter, save_base


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("advice") / "base")


def only(folder):
    (finding,) = diagnose(folder).findings
    return finding


def test_a_file_of_no_bytes_is_called_empty(base, tmp_path):
    folder = copy(base, tmp_path / "m")
    (folder / "model.safetensors").write_bytes(b"")
    found = only(folder)
    assert found.message == "model.safetensors is empty: 0 bytes"
    assert "disk was full" in found.cause
    assert "fetch model.safetensors again" in found.remedy


def test_shards_without_their_index_are_told_what_they_need(tmp_path):
    folder = save_base(tmp_path / "m", max_shard_size="20kB")
    (folder / "model.safetensors.index.json").unlink()
    found = only(folder)
    assert "there is no index" in found.message
    assert "copy model.safetensors.index.json" in found.remedy


def test_a_base_layer_in_a_name_is_not_told_to_be_cut_out(base, tmp_path):
    folder = copy(base, tmp_path / "m")
    name = "model.layers.0.self_attn.q_proj"
    edit_tensors(folder, lambda t: {k.replace(name, f"{name}.base_layer"): v for k, v in t.items()})
    found = next(r for r in diagnose(folder).findings if r.code == "MPD303")
    assert "merge_and_unload" in found.remedy
    assert "remove" not in found.remedy
    compiled = copy(base, tmp_path / "c")
    edit_tensors(compiled, lambda t: {f"_orig_mod.{k}": v for k, v in t.items()})
    found = next(r for r in diagnose(compiled).findings if r.code == "MPD303")
    assert "remove '_orig_mod.'" in found.remedy


NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3"])
def test_a_norm_of_zeros_is_found_where_zeros_are_wrong(tmp_path, family):
    folder = save_base(tmp_path / "m", family)
    edit_tensors(folder, lambda t: t | {NORM: torch.zeros_like(t[NORM])})
    found = [(r.name, r.evidence[0].tensor) for r in diagnose(folder).findings]
    assert found == ([] if family.startswith("gemma") else [("weights-all-zero", NORM)])


@pytest.mark.parametrize("value", [1.0, -0.5, 1e-20])
def test_a_matrix_of_one_value_is_found(base, tmp_path, value):
    folder = copy(base, tmp_path / "m")
    name = "model.layers.1.mlp.up_proj.weight"
    edit_tensors(folder, lambda t: t | {name: torch.full_like(t[name], value)})
    found = next(r for r in diagnose(folder).findings if r.code == "MPD309")
    assert f"all 1,536 values of {name} are {value:g}" in found.message
    edit_tensors(folder, lambda t: t | {name: t[name] + torch.eye(48, 32) * 0.1})
    assert not diagnose(folder, select=["MPD309"]).findings


def test_a_model_that_was_to_be_asked_and_could_not_be_is_unknown(base, tmp_path):
    folder = save_adapter(tmp_path / "a", base)
    edit_json(folder / "adapter_config.json", base_model_name_or_path="someone/some-model")
    assert diagnose(folder).verdict is Verdict.HEALTHY
    found = diagnose(folder, generate=True)
    assert (found.verdict, found.exit_code) == (Verdict.UNKNOWN, 3)
    assert found.why == (
        "--generate could not ask it: an adapter needs its base to answer; pass --base PATH"
    )
    # Whoever does not ask for answers is not told about them.
    assert diagnose(folder, generate=True, select=["MPD2"]).verdict is Verdict.HEALTHY


def test_a_quiz_beside_the_model_that_cannot_be_used_is_unknown(base, tmp_path):
    folder = copy(base, tmp_path / "m")
    (folder / "quiz.jsonl").write_text("not json")
    found = diagnose(folder, generate=True)
    assert found.exit_code == 3
    assert "the quiz cannot be used" in found.why


@pytest.mark.parametrize("text", ["", "not json", '{"id": "1"}', "\xff"])
@pytest.mark.parametrize("flag", ["--quiz", "--voice"])
def test_a_quiz_or_a_voice_that_cannot_be_used_is_wrong_usage(base, tmp_path, capsys, flag, text):
    file = tmp_path / "file"
    file.write_bytes(text.encode("latin-1"))
    assert main([str(base), "--generate", flag, str(file)]) == 2
    said = capsys.readouterr().err
    assert str(file) in said
    assert "examining" not in said


def test_a_quiz_is_refused_before_the_work(base, tmp_path):
    (tmp_path / "quiz.jsonl").write_text(json.dumps({"id": "1"}))
    with pytest.raises(DatasetError):
        diagnose(base, quiz=tmp_path / "quiz.jsonl")


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("~~~ x", r"\~\~\~ x"),
        ("- x", r"\- x"),
        ("+ x", r"\+ x"),
        ("=== x", r"\=== x"),
        ("# x #1", r"\# x \#1"),
        ("1. x 2. y", r"1\. x 2. y"),
        ("12) x", r"12\) x"),
        ("@someone a@b", "@&#8203;someone a@&#8203;b"),
        ("&amp; $x$", r"\&amp; \$x\$"),
        ("http://x :smile: rank: 16", r"http\://x \:smile: rank: 16"),
        ("a - b = 3.5", "a - b = 3.5"),
    ],
)
def test_foreign_text_means_nothing_to_markdown(text, escaped):
    assert escape_markdown(text) == escaped
