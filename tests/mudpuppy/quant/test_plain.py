"""A plain base whose tensors are no weights, or of another shape, through every way to open one."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mudpuppy.errors import ModelError
from mudpuppy.quant.opening import open_model, read_base
from mudpuppy.quant.plain import require_plain
from mudpuppy.quant.registered import FourBitConfig
from tests.mudpuppy.quant.tiny_llama import make_llama

UP = "model.layers.0.mlp.up_proj.weight"


def write(folder: Path, **settings) -> Path:
    make_llama().save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


def change(folder: Path, name: str, make) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    state[name] = make(state[name]).contiguous()
    save_file(state, path, {"format": "pt"})


@pytest.mark.parametrize("fourbit", [None, FourBitConfig()])
@pytest.mark.parametrize(
    ("dtype", "named"),
    [
        (torch.int8, "I8"),
        (torch.bool, "BOOL"),
        (torch.complex64, "C64"),
        (torch.float8_e4m3fn, "F8_E4M3"),
    ],
)
def test_a_type_that_is_no_weight_is_refused(dtype, named, fourbit, tmp_path):
    change(write(tmp_path), UP, lambda weight: weight.to(dtype))
    with pytest.raises(ModelError, match=rf"MP-Q03.*{UP} is of the type {named}, not one of F64"):
        open_model(tmp_path, torch.float32, fourbit=fourbit)


@pytest.mark.parametrize("fourbit", [None, FourBitConfig()])
def test_a_transposed_weight_is_refused_with_both_shapes(fourbit, tmp_path):
    change(write(tmp_path), UP, torch.t)
    shape = list(make_llama().get_submodule(UP.removesuffix(".weight")).weight.shape)
    with pytest.raises(ModelError) as caught:
        open_model(tmp_path, torch.float32, fourbit=fourbit)
    assert f"{UP} has the shape {shape[::-1]}" in caught.value.message
    assert caught.value.message.endswith(str(shape))


def test_a_model_that_is_narrower_than_its_files_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"has the shape .* and the model of config.json \["):
        open_model(write(tmp_path, intermediate_size=16), torch.float32, fourbit=FourBitConfig())


def test_levels_that_lost_what_declared_them_are_refused(tmp_path):
    """bitsandbytes keeps them under the weight's own name."""
    change(write(tmp_path), UP, lambda weight: weight.to(torch.uint8).view(-1, 1))
    with pytest.raises(ModelError, match="lost its quantization_config"):
        open_model(tmp_path, torch.float32)


def test_what_the_model_has_no_place_for_or_takes_as_a_number_is_let_through(tmp_path):
    """Old checkpoints hold masks and positions beside their weights."""
    write(tmp_path)
    change(tmp_path, UP, lambda weight: weight)
    path = tmp_path / "model.safetensors"
    save_file(
        load_file(path) | {"model.layers.0.self_attn.bias": torch.ones(1, 1, dtype=torch.bool)},
        path,
        {"format": "pt"},
    )
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(make_llama().config)
    require_plain(str(tmp_path), empty, read_base(tmp_path).tensors)
