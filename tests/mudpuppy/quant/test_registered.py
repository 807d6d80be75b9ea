"""4-bit checkpoints through transformers: saved, opened, quantised while they are read."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

import mudpuppy.quant.registered
from mudpuppy.adapters.merge import merge_adapter
from mudpuppy.errors import EngineError, ModelError
from mudpuppy.quant.formats import FORMATS
from mudpuppy.quant.linear4bit import Linear4bit, replace_linears
from mudpuppy.quant.opening import open_model
from mudpuppy.quant.registered import FourBitConfig, declare
from mudpuppy.tiny import resolve_model
from mudpuppy.tiny.names import FAMILIES
from tests.mudpuppy.quant.tiny_llama import make_ids, make_llama

SEES = ("llava", "qwen2-vl")


def packed(model: nn.Module) -> dict[str, Linear4bit]:
    return {n: m for n, m in model.named_modules() if isinstance(m, Linear4bit)}


def logits(model: nn.Module, ids: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=make_ids() if ids is None else ids).logits


def saved(folder: Path, format: str = "nf4", dtype: torch.dtype = torch.float32, **words) -> Path:
    model = make_llama(dtype=dtype, **words)
    replace_linears(model, FORMATS[format])
    declare(model)
    model.save_pretrained(folder)
    return folder


def auto_class(family: str):
    return AutoModelForImageTextToText if family in SEES else AutoModelForCausalLM


@pytest.mark.parametrize("family", FAMILIES)
def test_quantised_while_it_is_read_is_quantised_afterwards(family, tmp_path):
    """The same bytes as loading in 16 bits and replacing; and saved and opened, the same again."""
    base = resolve_model(f"tiny:{family}")
    kind = auto_class(family)
    expected = kind.from_pretrained(base, dtype=torch.bfloat16)
    names = replace_linears(expected, FORMATS["nf4"], compute_dtype=torch.bfloat16)
    found = open_model(
        base, torch.bfloat16, auto_class=kind.__name__, fourbit=FourBitConfig(format="nf4")
    )
    ids = make_ids(vocabulary=500)
    wanted = logits(expected, ids)
    for model in (found, _reopened(found, kind, tmp_path)):
        assert list(packed(model)) == names
        _same(expected.state_dict(), model.state_dict())
        for one, other in zip(expected.named_buffers(), model.named_buffers(), strict=True):
            assert one[0] == other[0]
            assert torch.equal(one[1], other[1])
        assert torch.equal(logits(model, ids), wanted)


def _reopened(model, kind, folder):
    model.save_pretrained(folder)
    return kind.from_pretrained(folder)


def _same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("format", list(FORMATS))
def test_a_saved_model_says_what_it_is_and_answers_the_same(format, dtype, tmp_path):
    model = make_llama(dtype=dtype, bias=True)
    replace_linears(model, FORMATS[format])
    declare(model)
    model.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert (said["quant_method"], said["format"]) == ("mudpuppy", format)
    assert said["block_size"] == FORMATS[format].default_block_size
    assert said["modules"] == list(packed(model))
    found = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(found), logits(model))
    assert {type(m) for m in packed(found).values()} == {type(m) for m in packed(model).values()}
    assert all(m.compute_dtype == dtype for m in packed(found).values())


def test_several_files_and_an_odd_width(tmp_path):
    model = make_llama(hidden_size=40, intermediate_size=75)  # 75 inputs: an odd number
    replace_linears(model, FORMATS["nf4"], block_size=32)
    declare(model)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    said = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert said["odd"] == [f"model.layers.{i}.mlp.down_proj" for i in (0, 1)]
    for found in (
        AutoModelForCausalLM.from_pretrained(tmp_path),
        open_model(tmp_path, model.dtype),
    ):
        assert torch.equal(logits(found), logits(model))
        assert packed(found)["model.layers.0.mlp.down_proj"].in_features == 75


def test_the_search_and_the_block_size_are_used(tmp_path):
    make_llama().save_pretrained(tmp_path)
    config = FourBitConfig(format="nf4", block_size=16, search=8)
    found = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    expected = make_llama()
    replace_linears(expected, FORMATS["nf4"], block_size=16, search=8)
    _same(expected.state_dict(), found.state_dict())


def test_only_the_named_layers_are_quantised(tmp_path):
    make_llama().save_pretrained(tmp_path / "plain")
    config = FourBitConfig(modules=["model.layers.1.mlp.up_proj"])
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=config)
    assert list(packed(found)) == ["model.layers.1.mlp.up_proj"]
    found.save_pretrained(tmp_path / "packed")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    assert list(packed(again)) == ["model.layers.1.mlp.up_proj"]
    assert torch.equal(logits(again), logits(found))


def test_a_layer_that_is_not_there_cannot_be_quantised(tmp_path):
    make_llama().save_pretrained(tmp_path)
    config = FourBitConfig(modules=["model.layers.7.mlp.up_proj"])
    with pytest.raises(ModelError, match=r"MP-Q01.*no linear layer 'model.layers.7.mlp.up_proj'"):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e5])
def test_a_weight_that_is_not_finite_is_named(value, tmp_path):
    model = make_llama()
    model.model.layers[1].mlp.down_proj.weight.data[3, 4] = value
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.down_proj\.weight is not finite in f"):
        AutoModelForCausalLM.from_pretrained(
            tmp_path, quantization_config=FourBitConfig(), dtype=torch.float16
        )


def test_a_weight_of_another_shape_is_named_with_both(tmp_path):
    make_llama().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    name = "model.layers.1.mlp.up_proj.weight"
    state = load_file(path)
    save_file(state | {name: state[name].t().contiguous()}, path, {"format": "pt"})
    with pytest.raises(ModelError, match=rf"{name} has the shape \[32, 72\].*\[72, 32\]"):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=FourBitConfig())


def test_an_exponent_beyond_float32_is_refused(tmp_path):
    path = saved(tmp_path, "mxfp4") / "model.safetensors"
    state = load_file(path)
    state["model.layers.1.mlp.up_proj.scales"][0, 0] = 254
    save_file(state, path, {"format": "pt"})
    with pytest.raises(ModelError, match=r"MP-Q04.*layers\.1\.mlp\.up_proj: scales up to 1\.7"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("odd", [5, "x", [1], {"a": 1}])
def test_odd_layers_that_are_no_list_are_refused(odd, tmp_path):
    config = json.loads((saved(tmp_path) / "config.json").read_text())
    config["quantization_config"]["odd"] = odd
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"MP-Q01.*odd is no list of layers"):
        open_model(tmp_path)


def test_a_text_part_of_a_model_of_text_alone_is_refused(tmp_path):
    path = saved(tmp_path) / "config.json"
    config = json.loads(path.read_text())
    config["text_config"] = {"quantization_config": config.pop("quantization_config")}
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"MP-Q01.*config\.json: a llama model has no text_config"):
        open_model(tmp_path)


def test_missing_and_unexpected_tensors_are_still_told(tmp_path):
    make_llama().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    del state["model.layers.0.self_attn.q_proj.weight"], state["model.layers.1.mlp.up_proj.weight"]
    state["model.layers.0.extra.weight"] = torch.zeros(2)
    save_file(state, path, {"format": "pt"})
    _, report = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=FourBitConfig(), output_loading_info=True
    )
    assert set(report["missing_keys"]) == {
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.mlp.up_proj.weight",
    }
    assert set(report["unexpected_keys"]) == {"model.layers.0.extra.weight"}


def test_an_adapter_trains_on_a_reopened_model_and_merges_into_it(tmp_path):
    found = AutoModelForCausalLM.from_pretrained(saved(tmp_path / "base"))
    before = {name: m.packed.qweight.clone() for name, m in packed(found).items()}
    adapted = get_peft_model(found, LoraConfig(r=4, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    adapted(input_ids=make_ids(), labels=make_ids()).loss.backward()
    assert all(p.grad is not None for n, p in adapted.named_parameters() if "lora_" in n)
    adapted.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"), str(tmp_path / "adapter")
    )
    expected = logits(again.eval())
    assert torch.equal(expected, logits(adapted.eval()))
    for name, layer in packed(again).items():
        key = name.removeprefix("base_model.model.").removesuffix(".base_layer")
        assert torch.equal(layer.packed.qweight, before[key])
    merged = merge_adapter(again)
    assert not packed(merged)
    assert torch.allclose(logits(merged), expected, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    said = json.loads((tmp_path / "merged/config.json").read_text())
    assert "quantization_config" not in said
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(logits(plain), logits(merged))


def test_a_layer_that_became_dense_is_saved_dense(tmp_path):
    found = AutoModelForCausalLM.from_pretrained(saved(tmp_path / "base"))
    layer = found.model.layers[0].mlp.up_proj
    layer.weight.data += 0.01
    found.save_pretrained(tmp_path / "changed")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "changed")
    assert "model.layers.0.mlp.up_proj" not in packed(again)
    assert torch.equal(logits(again), logits(found))


def test_a_model_in_two_formats_is_not_saved_as_one(tmp_path):
    model = make_llama()
    replace_linears(model, FORMATS["nf4"])
    declare(model)
    linear = nn.Linear(32, 72, bias=False)
    model.model.layers[1].mlp.up_proj = Linear4bit.from_linear(linear, FORMATS["int4"])
    with pytest.raises(EngineError, match=r"layers\.1\.mlp\.up_proj is in int4"):
        model.save_pretrained(tmp_path)


def test_a_plain_model_cannot_be_declared():
    with pytest.raises(ModelError, match="no layer is in 4 bits"):
        declare(make_llama())


def test_registering_twice_changes_nothing():
    known = mudpuppy.quant.registered.AUTO_QUANTIZATION_CONFIG_MAPPING
    before = dict(known)
    registered = mudpuppy.quant.registered
    registered.register("mudpuppy", FourBitConfig, registered.FourBitQuantizer)
    assert known == before


# --- damage


def edited(folder: Path, change, **declared) -> Path:
    """Change the tensors, and what is declared, of a sound checkpoint."""
    saved(folder)
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= declared
    (folder / "config.json").write_text(json.dumps(config))
    return folder


LAYER = "model.layers.1.self_attn.v_proj"
SCALES = f"{LAYER}.scales"


def nothing(state):
    pass


def drop(*parts):
    return lambda state: [state.pop(f"{LAYER}.{part}") for part in parts]


def put(value):
    def change(state):
        state[SCALES].view(-1)[1] = value

    return change


def half(state):
    state[SCALES] = state[SCALES].repeat(1, 2)


def narrow(state):
    state[f"{LAYER}.qweight"] = state[f"{LAYER}.qweight"][:, :-1].contiguous()


def other_type(state):
    state[SCALES] = state[SCALES].float()


DAMAGES = [
    (drop("scales"), {}, "MP-Q02", r"v_proj: the part scales is missing"),
    (drop("qweight"), {}, "MP-Q02", r"v_proj: the part qweight is missing"),
    (drop("qweight", "scales"), {}, "MP-Q02", r"1 declared layers are not packed.*v_proj"),
    (nothing, {"block_size": 16}, "MP-Q03", r"scales has the shape \[\d+, \d\], and \[\d+, \d\]"),
    (half, {}, "MP-Q03", r"v_proj: scales has the shape \[16, 2\], and \[16, 1\]"),
    (narrow, {}, "MP-Q03", r"v_proj: .* shape \[16, (15|30)\]"),
    (other_type, {}, "MP-Q03", r"scales is of the type F32, not BF16"),
    (put(float("nan")), {}, "MP-Q04", r"v_proj: 1 of 16 scales are NaN or infinite"),
    (put(float("inf")), {}, "MP-Q04", r"v_proj: 1 of 16 scales are NaN or infinite"),
    (put(-0.5), {}, "MP-Q04", r"v_proj: 1 of 16 scales are below zero"),
    (nothing, {"format": "nf5"}, "MP-Q01", "the format 'nf5' is none of"),
    (nothing, {"format": ["nf4"]}, "MP-Q01", "the format"),
    (nothing, {"version": 2}, "MP-Q01", "has the version 2, and 1 is read"),
    (nothing, {"version": True}, "MP-Q01", "has the version True"),
    (nothing, {"block_size": 0}, "MP-Q01", "the block size 0 is none"),
    (nothing, {"block_size": "64"}, "MP-Q01", "the block size '64' is none"),
    (nothing, {"format": "mxfp4"}, "MP-Q01", "blocks of 32"),
    (nothing, {"format": "int4"}, "MP-Q03", "scales is of the type BF16, not F32"),
    (nothing, {"modules": None}, "MP-Q01", "it lists no modules"),
    (nothing, {"modules": [LAYER]}, "MP-Q02", "13 packed layers are not declared"),
]


@pytest.mark.parametrize(("change", "declared", "code", "message"), DAMAGES)
def test_a_damaged_checkpoint_is_refused_by_code(change, declared, code, message, tmp_path):
    """By transformers alone, and by the engine: before anything is computed."""
    folder = edited(tmp_path / "model", change, **declared)
    for open_it in (AutoModelForCausalLM.from_pretrained, lambda f: open_model(f, torch.float32)):
        with pytest.raises(ModelError, match=message) as caught:
            open_it(folder)
        assert caught.value.code == code
        assert caught.value.hint


def test_zero_scales_are_sound(tmp_path):
    """A block of zeros has the scale 0."""
    folder = edited(tmp_path / "model", put(0.0))
    assert torch.isfinite(logits(AutoModelForCausalLM.from_pretrained(folder))).all()
