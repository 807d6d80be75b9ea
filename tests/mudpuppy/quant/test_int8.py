"""The int8 model: the same answers as its fake-quant twin, on disk and back."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from mudpuppy.errors import EngineError, ModelError
from mudpuppy.quant.fake_quant import fake_quantised
from mudpuppy.quant.int8 import (
    Int8Linear,
    describe_weights,
    load_int8,
    quantise_weights,
    save_int8,
)
from mudpuppy.tiny import resolve_model
from tests.mudpuppy.quant.tiny_llama import make_ids, make_llama


def saved(model: nn.Module, folder: Path) -> Path:
    save_int8(model, None, folder, quantise_weights(model), torch.float32)
    return folder


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_answers_as_its_twin_bit_for_bit(bias):
    model = make_llama(bias=bias)
    linear = model.model.layers[0].self_attn.q_proj
    x = torch.randn(2, 5, linear.in_features)
    with fake_quantised(model):
        twin = linear(x)
    assert torch.equal(Int8Linear.from_linear(linear)(x), twin)


@pytest.mark.parametrize("bias", [True, False])
def test_a_reloaded_model_answers_as_its_twin_bit_for_bit(bias, tmp_path):
    model = make_llama(bias=bias)
    with fake_quantised(model), torch.no_grad():
        twin = model(make_ids()).logits
    found = load_int8(saved(model, tmp_path / "int8"))
    assert sum(isinstance(m, Int8Linear) for m in found.modules()) == 14
    with torch.no_grad():
        assert torch.equal(found(make_ids()).logits, twin)


def test_a_bf16_model_keeps_the_levels_of_its_masters_and_fp32_scales(tmp_path):
    """Its twin is the bf16 model with the dequantised masters in place: equal bit for bit."""
    model = make_llama()
    weights = quantise_weights(model)
    save_int8(model, None, tmp_path / "int8", weights, torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16()
    found = load_int8(tmp_path / "int8")
    layer = found.model.layers[1].mlp.down_proj
    rows = weights["model.layers.1.mlp.down_proj"]
    assert torch.equal(layer.weight, rows.levels)
    assert torch.equal(layer.weight_scale, rows.scales)
    assert layer.weight_scale.dtype == torch.float32
    assert found.lm_head.weight.dtype == torch.bfloat16
    for name, rows in weights.items():
        model.get_submodule(name).weight.data = rows.dequantise()
    with fake_quantised(model), torch.no_grad():
        twin = model(make_ids()).logits
        logits = found(make_ids()).logits
    assert logits.dtype == torch.bfloat16
    assert torch.equal(logits, twin)


def test_the_file_holds_int8_and_the_config_says_so(tmp_path):
    folder = saved(make_llama(), tmp_path / "int8")
    state = load_file(folder / "model.safetensors")
    int8 = {name for name, tensor in state.items() if tensor.dtype == torch.int8}
    assert len(int8) == 14
    assert all(name.removesuffix("weight") + "weight_scale" in state for name in int8)
    found = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert found["quant_method"] == "compressed-tensors"
    assert found["format"] == "int-quantized"
    assert found["ignore"] == ["lm_head"]


def test_a_plain_reload_refuses_instead_of_making_weights_up(tmp_path):
    folder = saved(make_llama(), tmp_path / "int8")
    with pytest.raises(ImportError, match=r"compressed.tensors"):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("groups", [None, [], {}, {"group_0": []}, {"group_0": {}}])
def test_a_description_without_inputs_is_refused_by_code(groups, tmp_path):
    folder = saved(make_llama(), tmp_path / "int8")
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"]["config_groups"] = groups
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"MP-Q01.*nothing of input_activations"):
        load_int8(folder)


@pytest.mark.parametrize("damage", ["no config", "other method", "no scales", "missing"])
def test_a_folder_that_is_something_else_is_refused(damage, tmp_path):
    from safetensors.torch import save_file

    folder = saved(make_llama(), tmp_path / "int8")
    config, weights = folder / "config.json", folder / "model.safetensors"
    state = load_file(weights)
    if damage == "no config":
        config.unlink()
    elif damage == "other method":
        config.write_text(config.read_text().replace("compressed-tensors", "gptq"))
    elif damage == "no scales":
        state = {name: t for name, t in state.items() if not name.endswith("_scale")}
    else:
        del state["model.layers.0.mlp.up_proj.weight"]
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError):
        load_int8(folder)


def test_a_tied_head_is_saved_once_in_every_type(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(resolve_model("tiny:llama-tied"))
    save_int8(model, None, tmp_path / "int8", quantise_weights(model), torch.bfloat16)
    assert "lm_head.weight" not in load_file(tmp_path / "int8" / "model.safetensors")
    found = load_int8(tmp_path / "int8")
    assert found.lm_head.weight is found.model.embed_tokens.weight


def test_matrices_that_are_no_linear_layers_are_named():
    model = AutoModelForCausalLM.from_pretrained(resolve_model("tiny:mixtral"))
    found = describe_weights(model, quantise_weights(model))
    assert any("experts" in name for name in found["left_out"])
    assert describe_weights(make_llama(), quantise_weights(make_llama()))["left_out"] == []


def test_moving_a_layer_never_rounds_its_scales():
    layer = Int8Linear.from_linear(make_llama(bias=True).model.layers[0].self_attn.q_proj)
    before = layer.weight_scale.clone()
    layer.to(torch.bfloat16)
    assert torch.equal(layer.weight_scale, before)
    assert layer.weight.dtype == torch.int8
    assert layer.bias.dtype == torch.bfloat16
    assert layer(torch.randn(3, layer.in_features).bfloat16()).dtype == torch.bfloat16


def test_the_record_names_every_layer_with_its_error():
    model = make_llama()
    found = describe_weights(model, quantise_weights(model))
    assert (found["scheme"][:4], found["bits"]) == ("int8", 8)
    assert len(found["layers"]) == 14
    assert all(0 < layer["error"] < 0.02 for layer in found["layers"])


def test_a_weight_that_is_not_finite_names_its_layer():
    model = make_llama()
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(EngineError, match=r"layers\.1\.mlp\.up_proj"):
        quantise_weights(model)
