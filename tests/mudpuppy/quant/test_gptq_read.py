"""GPTQ folders of other writers open to the values they stand for; damaged ones are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.selftest.packing import pack_gptq
from mudpuppy.config_check import load_config
from mudpuppy.errors import ModelError
from mudpuppy.loading import ModelForm, _open
from mudpuppy.quant.checks import QuantisedModelError
from mudpuppy.quant.gptq_read import load_gptq, refuse_as_base
from tests.mudpuppy.quant.tiny_llama import make_llama

LAYER = "model.layers.0.mlp.down_proj"


def write_foreign(folder: Path, *, bits=4, version=1, symmetric=True, act_order=False) -> dict:
    """Write a checkpoint as another tool does, in numpy, and return its dequantised weights."""
    model = make_llama(intermediate_size=64, num_key_value_heads=4)
    model.save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    values = {}
    for name in [n for n in state if n.endswith("_proj.weight")]:
        layer, weight = name.removesuffix(".weight"), state.pop(name).numpy()
        parts = pack_gptq(
            weight, bits=bits, size=16, version=version, symmetric=symmetric, act_order=act_order
        )
        state |= {f"{layer}.{part}": torch.from_numpy(array) for part, array in parts.items()}
        values[name] = dequantise(parts, bits, 1 if version == 1 else 0)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": 16,
        "desc_act": act_order,
        "sym": symmetric,
        "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
    }
    (folder / "config.json").write_text(json.dumps(settings))
    return values


def dequantise(parts, bits: int, less: int) -> np.ndarray:
    """(level - zero) * scale, one weight after the other, from the bits of the words."""

    def stream(words) -> list[int]:
        joined = sum(int(np.uint32(word)) << (32 * i) for i, word in enumerate(words))
        return [joined >> (i * bits) & (2**bits - 1) for i in range(len(words) * 32 // bits)]

    levels = np.array([stream(column) for column in parts["qweight"].view(np.uint32).T])
    zeros = np.array([stream(row) for row in parts["qzeros"].view(np.uint32)]) + less
    group = parts["g_idx"]
    scales = parts["scales"].astype(np.float32)[group].T
    return (levels - zeros[group].T).astype(np.float32) * scales


@pytest.mark.parametrize(
    "written",
    [
        {},
        {"version": 2},
        {"version": 2, "symmetric": False},
        {"symmetric": False, "act_order": True},
        {"bits": 3, "act_order": True},
        {"bits": 2},
        {"bits": 8, "version": 2},
    ],
)
def test_what_another_tool_wrote_opens_to_its_values(tmp_path, written):
    values = write_foreign(tmp_path, **written)
    state = load_gptq(tmp_path, torch.float32).state_dict()
    assert len(values) == 14
    for name, expected in values.items():
        assert np.array_equal(state[name].numpy(), expected), name
    with pytest.raises(ModelError, match="MP-Q06"):
        refuse_as_base(tmp_path)


def drop(state, settings):
    del state[f"{LAYER}.scales"]


def narrow(state, settings):
    settings["group_size"] = 32


def misplace(state, settings):
    state[f"{LAYER}.g_idx"][3] = 99


def crowd(state, settings):
    state[f"{LAYER}.g_idx"][:] = 0


def ruin(state, settings):
    state[f"{LAYER}.scales"][0, 0] = float("nan")


def negate(state, settings):
    state[f"{LAYER}.scales"][0, 0] *= -1


def retype(state, settings):
    state[f"{LAYER}.qweight"] = state[f"{LAYER}.qweight"].float()


def orphan(state, settings):
    del state[f"{LAYER}.qweight"]


def rename(state, settings):
    settings["checkpoint_format"] = "marlin"


def widen(state, settings):
    settings["bits"] = 8


DAMAGES = {
    drop: "MP-Q02",
    orphan: "MP-Q02",
    narrow: "MP-Q03",
    retype: "MP-Q03",
    widen: "MP-Q03",
    ruin: "MP-Q04",
    negate: "MP-Q04",
    misplace: "MP-Q05",
    crowd: "MP-Q05",
    rename: "MP-Q01",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_by_its_code(tmp_path, damage):
    write_foreign(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    settings = json.loads((tmp_path / "config.json").read_text())
    damage(state, settings["quantization_config"])
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(settings))
    for opening in (lambda: load_gptq(tmp_path, torch.float32), lambda: refuse_as_base(tmp_path)):
        with pytest.raises(ModelError, match=DAMAGES[damage]):
            opening()


HOSTILE = {
    "a layout that is a list": {"checkpoint_format": ["gptq"]},
    "a layout that is an object": {"checkpoint_format": {"gptq": 1}},
    "bits that are no whole number": {"bits": 4.0},
    "bits that are a truth": {"bits": True},
    "bits in a list": {"bits": [4]},
    "a group size that is a text": {"group_size": "16"},
    "a group size that is a truth": {"group_size": True},
    "words in a list": {"pack_dtype": ["int32"]},
    "overrides in a list": {"dynamic": [1]},
    "overrides that are a number": {"dynamic": 7},
}


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("foreign")
    write_foreign(folder)
    return folder


def declare(foreign: Path, folder: Path, change) -> Path:
    """Return a folder with the same weights, and with a changed config.json."""
    settings = json.loads((foreign / "config.json").read_text())
    change(settings)
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "model.safetensors").symlink_to(foreign / "model.safetensors")
    return folder


@pytest.mark.parametrize("said", HOSTILE)
def test_what_is_declared_with_other_types_is_refused(foreign, tmp_path, said):
    def change(settings):
        settings["quantization_config"] |= HOSTILE[said]

    declare(foreign, tmp_path, change)
    for opening in (lambda: load_gptq(tmp_path, torch.float32), lambda: refuse_as_base(tmp_path)):
        with pytest.raises(QuantisedModelError) as caught:
            opening()
        assert caught.value.code == "MP-Q01"


def test_what_the_text_part_declares_counts(foreign, tmp_path):
    def change(settings):
        settings["text_config"] = {"quantization_config": settings.pop("quantization_config")}

    declare(foreign, tmp_path, change)
    with pytest.raises(ModelError, match="MP-Q06"):
        refuse_as_base(tmp_path)


def test_groups_that_are_not_there_are_refused_before_a_run_opens_the_base(tmp_path):
    write_foreign(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    misplace(state, {})
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = load_config({"model": str(tmp_path), "method": "lora", "dataset": "d", "output": "o"})
    with pytest.raises(ModelError, match=r"MP-Q05.*down_proj: g_idx names the groups"):
        _open(str(tmp_path), torch.float32, config, ModelForm(), None)


def test_a_plain_model_is_no_matter_of_gptq(tmp_path):
    make_llama().save_pretrained(tmp_path)
    refuse_as_base(tmp_path)
    refuse_as_base(tmp_path / "absent")
