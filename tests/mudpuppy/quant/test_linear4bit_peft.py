"""PEFT takes a packed layer as a target, trains beside it, and merges into it for real."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from mudpuppy.quant.formats import FORMATS
from mudpuppy.quant.linear4bit import Linear4bit, PackedWeight, replace_linears, restore_linears
from tests.mudpuppy.quant.tiny_llama import make_ids, make_llama

TARGETS = ["q_proj", "v_proj", "down_proj"]


def quantised_llama(dtype: torch.dtype = torch.float32, form: str = "nf4"):
    model = make_llama(dtype=dtype, bias=True)
    replace_linears(model, FORMATS[form], block_size=32)
    return model


def with_adapter(model, **changes):
    """A LoRA whose B matrices are not zero, so that it changes something."""
    torch.manual_seed(5)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, task_type="CAUSAL_LM", **changes)
    adapted = get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    return adapted


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(make_ids()).logits


def test_peft_wraps_a_packed_layer_and_leaves_it_packed():
    adapted = with_adapter(quantised_llama())
    layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
    assert isinstance(layer.base_layer, Linear4bit)
    assert layer.base_layer.is_packed
    trainable = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)


def test_every_gradient_equals_that_of_a_plain_base_with_the_dequantised_weights():
    packed = quantised_llama()
    plain = copy.deepcopy(packed)
    restore_linears(plain)
    gradients = []
    for model in (packed, plain):
        adapted = with_adapter(model)
        adapted(make_ids(), labels=make_ids()).loss.backward()
        gradients.append({n: p.grad for n, p in adapted.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) == 2 * 2 * len(TARGETS)
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize("safe_merge", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_a_saved_adapter_merges_into_a_packed_base(tmp_path, safe_merge, dora):
    with_adapter(quantised_llama(), use_dora=dora).save_pretrained(tmp_path)
    base = quantised_llama()
    before = logits(base)
    adapted = PeftModel.from_pretrained(base, tmp_path)
    expected = logits(adapted)
    merged = adapted.merge_and_unload(safe_merge=safe_merge)
    assert (expected - before).abs().max() > 0.05
    assert torch.allclose(logits(merged), expected, rtol=1e-4, atol=1e-4)
    keys = merged.state_dict().keys()
    assert "model.layers.0.self_attn.q_proj.weight" in keys
    assert "model.layers.0.self_attn.q_proj.qweight" not in keys
    assert not merged.model.layers[0].self_attn.k_proj.weight.requires_grad


def test_the_merge_is_exactly_the_dequantised_weight_plus_the_update():
    adapted = with_adapter(quantised_llama())
    layer = adapted.base_model.model.model.layers[1].mlp.down_proj
    expected = layer.base_layer.weight + layer.get_delta_weight("default")
    adapted.merge_adapter()
    assert torch.equal(layer.base_layer.weight, expected)


def test_a_weight_that_forgets_what_is_written_would_be_noticed(monkeypatch):
    """The defect this layer is built against: a merge that does nothing, without a word."""
    monkeypatch.setattr(Linear4bit, "set_dense", lambda self, weight: None)
    adapted = with_adapter(quantised_llama())
    expected = logits(adapted)
    merged = adapted.merge_and_unload()
    assert not torch.allclose(logits(merged), expected, rtol=1e-4, atol=1e-4)


def test_unmerging_brings_the_weights_back():
    adapted = with_adapter(quantised_llama())
    layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
    weight, expected = layer.base_layer.weight.clone(), logits(adapted)
    adapted.merge_adapter()
    assert not torch.allclose(layer.base_layer.weight, weight, atol=1e-3)
    adapted.unmerge_adapter()
    assert torch.allclose(layer.base_layer.weight, weight, rtol=0, atol=1e-6)
    assert torch.allclose(logits(adapted), expected, rtol=1e-4, atol=1e-4)


def test_two_adapters_merge_one_after_the_other():
    adapted = with_adapter(quantised_llama())
    adapted.add_adapter("second", LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False))
    layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
    expected = layer.base_layer.weight + layer.get_delta_weight("default")
    expected += layer.get_delta_weight("second")
    adapted.merge_adapter(["default", "second"])
    assert torch.allclose(layer.base_layer.weight, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("how", ["pissa", "olora"])
def test_an_initialisation_that_changes_the_base_changes_it(how):
    base = quantised_llama()
    before = logits(base)
    config = LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=how, lora_alpha=4)
    adapted = get_peft_model(base, config).eval()
    layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
    assert not layer.base_layer.is_packed
    assert torch.allclose(logits(adapted), before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_base_trains_under_autocast(dtype):
    adapted = with_adapter(quantised_llama(dtype)).train()
    with torch.autocast("cpu", dtype=dtype):
        loss = adapted(make_ids(), labels=make_ids()).loss
    loss.backward()
    gradients = [p.grad for p in adapted.parameters() if p.requires_grad]
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in gradients)
    assert any(float(g.abs().max()) > 0 for g in gradients)


def test_activation_checkpointing_changes_no_gradient():
    gradients = []
    for enabled in (False, True):
        adapted = with_adapter(quantised_llama()).train()
        if enabled:
            adapted.enable_input_require_grads()
            adapted.base_model.model.activation_checkpointing_enable()
        adapted(make_ids(), labels=make_ids(), use_cache=False).loss.backward()
        gradients.append([p.grad for p in adapted.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_an_optimizer_step_moves_the_adapter_and_no_packed_bit():
    adapted = with_adapter(quantised_llama()).train()
    layers = [m for m in adapted.modules() if isinstance(m, Linear4bit)]
    before = [tuple(t.clone() for t in m.packed[:2]) for m in layers]
    trained = [p for p in adapted.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in trained]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    adapted(make_ids(), labels=make_ids()).loss.backward()
    optimizer.step()
    assert all(not torch.equal(p, s) for p, s in zip(trained, start, strict=True))
    for layer, (qweight, scales) in zip(layers, before, strict=True):
        assert torch.equal(layer.qweight, qweight)
        assert torch.equal(layer.scales, scales)


def test_a_restored_merge_saves_and_loads_as_a_plain_model(tmp_path):
    from transformers import LlamaForCausalLM

    adapted = with_adapter(quantised_llama())
    expected = logits(adapted)
    merged = adapted.merge_and_unload()
    restore_linears(merged)
    assert not any(isinstance(p, PackedWeight) for p in merged.parameters())
    assert all(type(m) is nn.Linear for m in merged.modules() if isinstance(m, nn.Linear))
    merged.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.allclose(logits(loaded), expected, rtol=1e-4, atol=1e-4)
