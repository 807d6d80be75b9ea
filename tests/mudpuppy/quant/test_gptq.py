"""GPTQ walks a whole model block by block, and what it saves is what it computed."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, MistralConfig, Phi3Config, Qwen2Config
from transformers.models.gemma3.configuration_gemma3 import Gemma3TextConfig

from mudpuppy.errors import EngineError, ModelError, OutputError
from mudpuppy.quant.gptq import GptqConfig, load_gptq, quantise_model, save_gptq
from mudpuppy.quant.gptq_linear import GptqLinear
from tests.mudpuppy.quant.tiny_llama import make_llama

CONFIG = GptqConfig(group_size=32)
SHAPE = {"num_hidden_layers": 3, "hidden_size": 128, "intermediate_size": 256}


def make_samples(count: int = 24, length: int = 24, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Token sequences with structure: each token is mostly the one before plus a fixed step."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for _ in range(count):
        start = int(torch.randint(2, 96, (1,), generator=generator))
        step = int(torch.randint(1, 4, (1,), generator=generator))
        ids = [(start + step * i) % 94 + 2 for i in range(length)]
        samples.append({"input_ids": torch.tensor([ids])})
    return samples


@pytest.fixture(scope="module")
def trained_state() -> dict[str, torch.Tensor]:
    """The weights of a tiny model that learnt the sequences of `make_samples`."""
    model = make_llama(**SHAPE, spread=1.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for seed in range(150):
        ids = torch.cat([sample["input_ids"] for sample in make_samples(16, seed=100 + seed)])
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


def make_trained(state):
    model = make_llama(**SHAPE)
    model.load_state_dict(state)
    return model


@torch.no_grad()
def logits(model, samples=None) -> torch.Tensor:
    samples = make_samples(8, seed=9) if samples is None else samples
    return torch.cat([model(**sample).logits for sample in samples])


def divergence(model, expected: torch.Tensor) -> float:
    """Mean KL divergence of the model's next-token distribution from the expected one."""
    found = F.log_softmax(logits(model).float(), dim=-1).flatten(0, 1)
    wanted = F.log_softmax(expected.float(), dim=-1).flatten(0, 1)
    return float(F.kl_div(found, wanted, log_target=True, reduction="batchmean"))


def round_to_nearest(model):
    """Round every linear layer of the blocks on the symmetric grid, without any Hessian."""
    for layer in model.model.layers.modules():
        if type(layer) is nn.Linear:
            groups = layer.weight.detach().unflatten(1, (-1, 32))
            scale = (2 * groups.abs().amax(dim=2, keepdim=True) / 15).half().float()
            layer.weight.data = ((groups / scale).round().clamp(-8, 7) * scale).flatten(1)
    return model


@pytest.mark.parametrize("act_order", [False, True])
def test_a_trained_model_loses_far_less_than_by_rounding(trained_state, act_order):
    expected = logits(make_trained(trained_state))
    config = GptqConfig(group_size=32, act_order=act_order)
    model = make_trained(trained_state)
    lines: list[str] = []
    errors = quantise_model(model, make_samples(), config, progress=lines.append)
    assert len(errors) == len(lines) == 21
    assert all(error.gptq_error < 0.5 * error.rtn_error for error in errors), errors
    rounded = divergence(round_to_nearest(make_trained(trained_state)), expected)
    assert 0 < divergence(model, expected) < 0.6 * rounded


def test_the_reported_error_is_the_change_of_the_first_layer_s_output():
    model = make_llama()
    layer = model.model.layers[0].self_attn.q_proj
    seen: list[torch.Tensor] = []
    hook = layer.register_forward_hook(lambda _, args, __: seen.append(args[0].flatten(0, 1)))
    logits(model, make_samples())
    hook.remove()
    before = layer.weight.detach().clone()
    errors = quantise_model(model, make_samples(), CONFIG)
    change = torch.cat(seen) @ (before - model.model.layers[0].self_attn.q_proj.weight).T
    assert errors[0].name == "model.layers.0.self_attn.q_proj"
    assert errors[0].gptq_error == pytest.approx(2 * float(change.square().sum()), rel=1e-3)


def test_later_blocks_see_what_the_quantised_blocks_put_out():
    """With the first block ruined by 2 bits, the inputs of the second are other ones."""
    seen: dict[int, torch.Tensor] = {}
    for bits in (2, 8):
        model = make_llama(intermediate_size=64)
        quantise_model(model, make_samples(4), GptqConfig(bits=bits, group_size=32))
        inputs: list[torch.Tensor] = []
        hook = model.model.layers[1].register_forward_pre_hook(
            lambda _, args, inputs=inputs: inputs.append(args[0])
        )
        logits(model, make_samples(4))
        hook.remove()
        seen[bits] = torch.cat(inputs)
    assert not torch.allclose(seen[2], seen[8], atol=1e-2)


def test_everything_outside_the_blocks_and_every_norm_is_untouched():
    model, plain = make_llama(bias=True).train(), make_llama(bias=True)
    quantise_model(model, make_samples(4), CONFIG)
    assert model.training
    assert model.model.layers[0].mlp.down_proj.training
    state = model.state_dict()
    assert state.keys() == plain.state_dict().keys()
    for name, tensor in plain.state_dict().items():
        packed = name.endswith("_proj.weight")
        assert torch.equal(state[name], tensor) != packed, name
    assert type(model.lm_head) is nn.Linear
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_padding_counts_for_nothing():
    """Padded inputs give the layers of the first block the Hessians of the bare tokens."""
    bare = make_samples(6, length=10)
    padded = []
    for sample in bare:
        ids = F.pad(sample["input_ids"], (0, 7), value=5)
        padded.append({"input_ids": ids, "attention_mask": (torch.arange(17) < 10).long()[None]})
    errors = [quantise_model(make_llama(), samples, CONFIG) for samples in (bare, padded)]
    for plain, other in zip(*errors, strict=True):
        assert other.gptq_error == pytest.approx(plain.gptq_error, rel=0.05), plain.name
    assert errors[1][0].rtn_error == pytest.approx(errors[0][0].rtn_error, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_saved_model_loads_to_the_same_bits(tmp_path, dtype, symmetric):
    model = make_llama(dtype=dtype, bias=True)
    config = GptqConfig(group_size=24, symmetric=symmetric, act_order=not symmetric)
    quantise_model(model, make_samples(4), config)
    folder = tmp_path / "gptq"
    save_gptq(model, None, folder, config)
    loaded = load_gptq(folder, dtype)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(logits(loaded), logits(model))
    assert all(type(m) is nn.Linear for m in loaded.modules() if isinstance(m, nn.Linear))


def test_the_files_have_the_standard_layout(tmp_path):
    model = make_llama()
    quantise_model(model, make_samples(4), CONFIG)
    folder = tmp_path / "deep" / "gptq"
    save_gptq(model, None, folder, CONFIG)
    found = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert found == json.loads((folder / "quantize_config.json").read_text())
    wanted = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
    wanted |= {"checkpoint_format": "gptq", "pack_dtype": "int32", "lm_head": False}
    assert wanted.items() <= found.items()
    assert found["dynamic"] is None
    tensors = load_file(folder / "model.safetensors")
    prefix = "model.layers.0.mlp.down_proj."
    layout = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    assert {name: (t.dtype, tuple(t.shape)) for name, t in layout.items()} == {
        "qweight": (torch.int32, (72 // 8, 32)),
        "qzeros": (torch.int32, (3, 32 // 8)),
        "scales": (torch.float16, (3, 32)),
        "g_idx": (torch.int32, (72,)),
    }
    assert set(layout["qzeros"].flatten().tolist()) == {0x77777777}
    assert layout["g_idx"].tolist() == [i // 32 for i in range(72)]
    assert "lm_head.weight" in tensors
    assert [path.name for path in folder.parent.iterdir()] == ["gptq"]


def test_a_layer_that_does_not_fit_the_layout_is_left_and_recorded(tmp_path):
    model = make_llama(intermediate_size=76)
    before = model.model.layers[1].mlp.up_proj.weight.detach().clone()
    errors = {error.name: error for error in quantise_model(model, make_samples(4), CONFIG)}
    skipped = errors["model.layers.1.mlp.up_proj"]
    assert skipped.skipped == "its out_features 76 is not divisible by 8"
    assert "in_features 76" in errors["model.layers.1.mlp.down_proj"].skipped
    assert not errors["model.layers.1.self_attn.q_proj"].skipped
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, before)
    save_gptq(model, None, tmp_path / "gptq", CONFIG)
    found = json.loads((tmp_path / "gptq" / "config.json").read_text())["quantization_config"]
    assert r"-:^model\.layers\.1\.mlp\.up_proj$" in found["dynamic"]
    assert len(found["dynamic"]) == 6
    assert torch.equal(logits(load_gptq(tmp_path / "gptq", torch.float32)), logits(model))


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_layer_too_small_for_the_scales_is_left_and_recorded(tmp_path, symmetric):
    model = make_llama()
    small = model.model.layers[0].self_attn.v_proj.weight
    small.data *= 1e-9
    before = small.detach().clone()
    assert bool(before.any())
    config = GptqConfig(group_size=32, symmetric=symmetric)
    errors = {error.name: error for error in quantise_model(model, make_samples(4), config)}
    name = "model.layers.0.self_attn.v_proj"
    assert "too small for float16 scales" in errors[name].skipped
    assert [error.name for error in errors.values() if error.skipped] == [name]
    assert torch.equal(model.get_submodule(name).weight, before)
    save_gptq(model, None, tmp_path / "gptq", config)
    loaded = load_gptq(tmp_path / "gptq", torch.float32)
    assert torch.equal(loaded.get_submodule(name).weight, before)


SMALL = {"vocab_size": 96, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
SMALL |= {"num_key_value_heads": 2, "intermediate_size": 48, "pad_token_id": 0}
FAMILIES = {
    "qwen2": Qwen2Config(**SMALL),
    "mistral": MistralConfig(**SMALL),
    "phi3": Phi3Config(**SMALL),
    "gemma3": Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=4, sliding_window_pattern=2),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_quantise_save_and_load(family, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]).eval()
    errors = quantise_model(model, make_samples(4), CONFIG)
    assert not any(error.skipped for error in errors)
    assert sum(e.gptq_error for e in errors) < sum(e.rtn_error for e in errors)
    save_gptq(model, None, tmp_path / "gptq", CONFIG)
    loaded = load_gptq(tmp_path / "gptq", torch.float32)
    assert torch.equal(logits(loaded), logits(model))


def test_an_embedding_that_is_tied_to_the_head_stays_tied(tmp_path):
    model = make_llama()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    quantise_model(model, make_samples(4), CONFIG)
    save_gptq(model, None, tmp_path / "gptq", CONFIG)
    loaded = load_gptq(tmp_path / "gptq", torch.float32)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(logits(loaded), logits(model))


def test_a_broken_weight_is_named():
    model = make_llama()
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[0, 0] = float("inf")
    with pytest.raises(EngineError, match=r"model\.layers\.1\.self_attn\.o_proj: the weights"):
        quantise_model(model, make_samples(4), CONFIG)


def test_a_model_without_a_layer_that_fits_is_refused():
    with pytest.raises(
        EngineError, match="nothing in this model can be quantised: its in_features"
    ):
        quantise_model(
            make_llama(hidden_size=40, intermediate_size=36), make_samples(1), GptqConfig(bits=2)
        )


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="at least one calibration sample"):
        quantise_model(make_llama(), [], CONFIG)


def test_saving_refuses_a_full_folder_and_a_model_that_was_not_quantised(tmp_path):
    with pytest.raises(EngineError, match="no layer of this model is quantised"):
        save_gptq(make_llama(), None, tmp_path / "gptq", CONFIG)
    assert not any(tmp_path.iterdir())
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not empty"):
        save_gptq(make_llama(), None, tmp_path, CONFIG)


def test_saving_refuses_a_weight_that_was_trained_afterwards(tmp_path):
    model = make_llama()
    quantise_model(model, make_samples(2), CONFIG)
    layer = model.model.layers[0].mlp.up_proj
    assert isinstance(layer, GptqLinear)
    layer.weight.data[0, 0] += 1e-3
    with pytest.raises(EngineError, match=r"layers\.0\.mlp\.up_proj: the weight was changed"):
        save_gptq(model, None, tmp_path / "gptq", CONFIG)


def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
    model = make_llama()
    quantise_model(model, make_samples(2), CONFIG)

    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("mudpuppy.quant.gptq_files.write_json_atomic", fail)
    with pytest.raises(OSError, match="disk full"):
        save_gptq(model, None, tmp_path / "gptq", CONFIG)
    assert not any(tmp_path.iterdir())


def test_loading_refuses_another_kind_of_checkpoint(tmp_path):
    with pytest.raises(ModelError, match=r"config.json cannot be read"):
        load_gptq(tmp_path, torch.float32)
    make_llama().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="expected quant_method gptq"):
        load_gptq(tmp_path, torch.float32)
