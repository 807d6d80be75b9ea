"""Merging into a base that lies in 4 bits: on the values that the adapter saw, equal to PEFT's."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from mudpuppy.adapters.merge import merge_adapter
from mudpuppy.adapters.merge_inputs import read_inputs
from mudpuppy.adapters.shard_merge import merge_shards
from mudpuppy.errors import ModelError
from mudpuppy.quant.formats import FORMATS
from mudpuppy.quant.linear4bit import replace_linears
from mudpuppy.quant.opening import open_model
from mudpuppy.quant.registered import declare
from tests.mudpuppy.quant.test_opening import bnb_model
from tests.mudpuppy.quant.tiny_llama import make_ids, make_llama

pytestmark = pytest.mark.filterwarnings("ignore:::peft", "ignore::FutureWarning")


def save_base(folder: Path, kind: str) -> Path:
    """Save a base in bf16 whose linear layers are packed, by us or by bitsandbytes."""
    if kind.startswith("bnb-"):
        return bnb_model(folder, kind=kind.removeprefix("bnb-"))[0]
    model = make_llama(dtype=torch.bfloat16, hidden_size=40, intermediate_size=75)
    replace_linears(model, FORMATS[kind])
    declare(model)
    model.save_pretrained(folder, max_shard_size="20KB")
    return folder


def save_adapter(base: Path, folder: Path, **words) -> Path:
    """Save an adapter with random weights on some of the layers."""
    torch.manual_seed(3)
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], **words)
    adapted = get_peft_model(open_model(base), settings)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "int4", "mxfp4", "bnb-nf4", "bnb-fp4"])
def test_the_merge_on_disk_is_the_live_one(kind, dora, tmp_path):
    """Bit for bit, layers without an adapter included: all are plain afterwards."""
    base = save_base(tmp_path / "base", kind)
    adapter = save_adapter(base, tmp_path / "adapter", use_dora=dora)
    live = merge_adapter(PeftModel.from_pretrained(open_model(base), str(adapter)), torch.bfloat16)
    report = merge_shards(base, adapter, tmp_path / "merged")
    assert report.precision == "BF16"
    config = json.loads((tmp_path / "merged/config.json").read_text())
    assert "quantization_config" not in config
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.bfloat16)
    expected = live.state_dict()
    assert merged.state_dict().keys() == expected.keys()
    for name, tensor in merged.state_dict().items():
        if (dora and "q_proj" in name) or "down_proj" in name:
            assert torch.allclose(tensor, expected[name], rtol=2**-7, atol=1e-6), name
        else:
            assert torch.equal(tensor, expected[name]), name
    with torch.no_grad():
        assert torch.isfinite(merged(input_ids=make_ids()).logits).all()


def test_fp32_keeps_what_the_levels_say(tmp_path):
    base = save_base(tmp_path / "base", "nf4")
    adapter = save_adapter(base, tmp_path / "adapter")
    merge_shards(base, adapter, tmp_path / "merged", precision="fp32")
    layer = open_model(base).model.layers[1].self_attn.k_proj  # no adapter on it
    found: dict[str, torch.Tensor] = {}
    for file in (tmp_path / "merged").glob("*.safetensors"):
        found |= load_file(file)
    wanted = layer.format.dequantise(layer.packed, torch.float32)
    assert torch.equal(found["model.layers.1.self_attn.k_proj.weight"], wanted)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}


def test_how_the_adapter_says_it_saw_the_base_does_not_count_for_a_packed_one(tmp_path):
    """The levels are there: packing the dequantised weights again could only change them."""
    base = save_base(tmp_path / "base", "nf4")
    adapter = save_adapter(base, tmp_path / "adapter")
    said = {"scheme": "int4-symmetric-blockwise", "block_size": 16, "modules": ["x"]}
    (adapter / "mudpuppy.json").write_text(json.dumps({"quantisation": said}))
    inputs = read_inputs(base, adapter, say=lambda _: None)
    assert inputs.packed is None
    assert inputs.is_packed


def test_a_damaged_base_is_refused(tmp_path):
    base = save_base(tmp_path / "base", "nf4")
    adapter = save_adapter(base, tmp_path / "adapter")
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"]["block_size"] = 16
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="MP-Q03"):
        merge_shards(base, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
