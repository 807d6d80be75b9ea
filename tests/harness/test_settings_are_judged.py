"""Settings that are absent, absurd, or of another model are found from the folder alone."""

from __future__ import annotations

import json

import pytest

from harness.doctor import diagnose
from tests.harness.checkpoints import (
    FAMILIES,
    copy,
    edit_json,
    found_in,
    save_adapter,
    save_base,
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: save_base(root / name, name) for name in FAMILIES}


def test_weights_without_config_are_found(tmp_path, models):
    folder = copy(models["llama"], tmp_path / "m")
    (folder / "config.json").unlink()
    assert "config-missing" in found_in(folder)


def test_adapter_settings_without_weights_are_found(tmp_path, models):
    folder = save_adapter(tmp_path / "a", models["llama"])
    (folder / "adapter_model.safetensors").unlink()
    assert "adapter-weights-missing" in found_in(folder)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "phi3"])
@pytest.mark.parametrize(
    "key", ["hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"]
)
def test_a_size_of_another_model_is_found(tmp_path, models, family, key):
    folder = copy(models[family], tmp_path / "m")
    value = json.loads((folder / "config.json").read_text())[key]
    edit_json(folder / "config.json", **{key: value * 2})
    assert "shapes-disagree" in found_in(folder)


@pytest.mark.parametrize("value", [2, 10**9])
def test_a_number_of_layers_that_is_not_that_of_the_files_is_found(tmp_path, models, value):
    folder = copy(models["llama"], tmp_path / "m")
    edit_json(folder / "config.json", num_hidden_layers=value)
    assert "shapes-disagree" in found_in(folder)


@pytest.mark.parametrize("value", ["null", '"32"', "-3", "0", "NaN", "[32]", "1e400", "{}", "true"])
@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads"])
def test_a_size_that_is_no_number_is_found(tmp_path, models, key, value):
    folder = copy(models["llama"], tmp_path / "m")
    settings = json.loads((folder / "config.json").read_text())
    settings[key] = "HERE"
    (folder / "config.json").write_text(json.dumps(settings).replace('"HERE"', value))
    assert "shapes-disagree" in found_in(folder)


def test_unknown_families_are_not_judged_by_shape(tmp_path, models):
    folder = copy(models["llama"], tmp_path / "m")
    edit_json(folder / "config.json", model_type="other", hidden_size=7, architectures=["Other"])
    names = {r.name for r in diagnose(folder).findings}
    assert "shapes-disagree" not in names
