"""A model in memory is judged by its state: adapters per layer, hooks, devices, gradients, ties."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from harness.doctor import diagnose_model
from harness.findings import Severity, Verdict
from tests.harness.checkpoints import FAMILIES, SIZES, SPECIAL


def make(family="llama"):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(FAMILIES[family]).eval()


def wrap(model, **settings):
    targets = {"target_modules": ["q_proj", "v_proj"], "r": 4}
    return get_peft_model(model, LoraConfig(task_type=TaskType.CAUSAL_LM, **targets | settings))


def found(model):
    diagnosis = diagnose_model(model)
    assert diagnosis.verdict is not Verdict.UNKNOWN, diagnosis.why
    assert all(result.evidence for result in diagnosis.findings)
    return {result.name for result in diagnosis.findings}


def layers(model):
    return [m for m in model.modules() if hasattr(m, "merged_adapters") and hasattr(m, "lora_A")]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_model_is_healthy(family):
    assert found(make(family)) == set()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lora_dropout": 0.1},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": "all-linear"},
        {"trainable_token_indices": [90]},
        {"bias": "all"},
    ],
)
@pytest.mark.parametrize("family", ["llama", "llama-tied", "mixtral"])
def test_a_model_with_an_adapter_is_healthy(family, settings):
    assert found(wrap(make(family), **settings)) == set()


def test_two_adapters_on_different_modules_are_healthy():
    model = wrap(make())
    model.add_adapter("other", LoraConfig(task_type=TaskType.CAUSAL_LM, target_modules=["k_proj"]))
    assert found(model) == set()
    model.set_adapter("other")
    assert found(model) == set()


def test_merged_everywhere_and_disabled_everywhere_are_regular():
    model = wrap(make())
    model.merge_adapter()
    assert found(model) == set()
    model.unmerge_adapter()
    with model.disable_adapter():
        assert found(model) == set()


def test_checkpointing_and_training_are_healthy():
    model = wrap(make())
    model.train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable()
    assert found(model) == set()


def test_a_merge_in_part_is_irregular():
    model = wrap(make())
    layers(model)[0].merge()
    assert found(model) == {"adapters-irregular"}


def test_adapters_disabled_in_part_are_irregular():
    model = wrap(make())
    layers(model)[1].enable_adapters(False)
    assert found(model) == {"adapters-irregular"}


def test_another_active_adapter_in_one_layer_is_irregular():
    model = wrap(make())
    other = LoraConfig(task_type=TaskType.CAUSAL_LM, target_modules=["q_proj", "v_proj"])
    model.add_adapter("other", other)
    layers(model)[2].set_adapter("other")
    assert "adapters-irregular" in found(model)


def test_a_strided_parameter_is_found():
    model = make()
    weight = model.lm_head.weight
    weight.data = weight.data.t().contiguous().t()
    assert found(model) == {"tensors-not-contiguous"}


def test_a_hook_that_was_left_is_found_and_gone_when_removed():
    model = make()
    handle = model.model.layers[1].register_forward_hook(lambda *_: None)
    assert found(model) == {"hooks-left"}
    handle.remove()
    assert found(model) == set()


def test_a_base_that_would_be_trained_is_found():
    model = wrap(make())
    model.requires_grad_(True)
    assert found(model) == {"base-left-trainable"}


def test_parameters_without_values_are_found():
    model = make()
    model.model.layers[0].to("meta")
    assert found(model) == {"parameters-displaced"}


def test_layers_of_another_type_are_found():
    model = make()
    model.model.layers[2].to(torch.bfloat16)
    assert found(model) == {"parameters-displaced"}


def test_a_broken_tie_is_found():
    model = make("llama-tied")
    model.lm_head.weight = copy.deepcopy(model.model.embed_tokens.weight)
    assert found(model) == {"tie-broken-in-memory"}


def test_dropout_is_a_note_in_training_and_a_finding_where_it_was_left():
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=96, **SPECIAL))
    (result,) = diagnose_model(model.train()).findings
    assert (result.name, result.severity) == ("dropout-left-on", Severity.NOTE)
    model.eval()
    assert found(model) == set()
    model.transformer.h[0].train()
    (result,) = diagnose_model(model).findings
    assert result.severity is Severity.MEDIUM


def test_an_object_that_is_no_module_is_not_judged():
    assert diagnose_model(object()).findings == ()
    assert SIZES["vocab_size"] == 96
