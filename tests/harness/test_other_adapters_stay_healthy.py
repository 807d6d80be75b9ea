"""Adapters of PEFT's other methods, of other heads and other models have no finding either."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from harness.doctor import diagnose
from mudpuppy.tiny.families import build_family
from tests.harness.checkpoints import SIZES, SPECIAL, edit_json, found_in, save_base
from tests.harness.test_healthy_stays_healthy import assert_clean

SMALL = {"num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 96, "hidden_size": 32}
MODELS = {
    "gpt2": transformers.GPT2Config(vocab_size=96, n_embd=32, n_layer=3, n_head=4, **SPECIAL),
    "falcon": transformers.FalconConfig(**SMALL, **SPECIAL),
    "llama-tied": transformers.LlamaConfig(**SIZES, **SPECIAL, tie_word_embeddings=True),
}
Q = {"target_modules": ["q_proj"]}
METHODS = {
    "OFTConfig": {"oft_block_size": 4},
    "BOFTConfig": {"boft_block_size": 4},
    "VeraConfig": {"r": 4},
    "IA3Config": {"target_modules": ["k_proj"], "feedforward_modules": []},
    "LoHaConfig": {"r": 4},
    "LoKrConfig": {"r": 4},
    "AdaLoraConfig": {"init_r": 4, "target_r": 2, "total_step": 10},
    "PromptTuningConfig": {"num_virtual_tokens": 4, "target_modules": None},
    "LNTuningConfig": {"target_modules": ["input_layernorm"]},
    "FourierFTConfig": {"n_frequency": 10},
    "TrainableTokensConfig": {"token_indices": [90], "target_modules": ["embed_tokens"]},
    "PsoftConfig": {},
    "TinyLoraConfig": {},
    "LilyConfig": {},
}
"""PEFT's methods, with what makes them small."""
TASKS = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
    "FEATURE_EXTRACTION": AutoModel,
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("other") / "llama")


def save_tuned(folder: Path, base: Path, settings: object, auto: type = AutoModelForCausalLM):
    """Save an adapter of any method with values as training leaves them."""
    wrapped = get_peft_model(auto.from_pretrained(base), settings)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    wrapped.save_pretrained(folder)
    return folder


def lora(**settings: object) -> LoraConfig:
    return LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, **Q, **settings})


@pytest.mark.parametrize("method", METHODS)
def test_the_other_methods_of_peft_are_healthy(tmp_path, llama, method):
    wanted = {"task_type": "CAUSAL_LM", **Q, **METHODS[method]}
    settings = {key: value for key, value in wanted.items() if value is not None}
    assert_clean(save_tuned(tmp_path / "a", llama, getattr(peft, method)(**settings)))


@pytest.mark.parametrize("task", TASKS)
def test_an_adapter_for_another_head_is_healthy(tmp_path, llama, task):
    folder = save_tuned(tmp_path / "a", llama, lora(task_type=task), TASKS[task])
    assert_clean(folder)


@pytest.mark.parametrize("how", [{"modules_to_save": ["lm_head"]}, {"lora": "lm_head"}])
@pytest.mark.parametrize("family", MODELS)
def test_a_head_that_is_tied_in_the_base_can_be_adapted(tmp_path, family, how):
    torch.manual_seed(0)
    base = tmp_path / "base"
    AutoModelForCausalLM.from_config(MODELS[family]).save_pretrained(base)
    target = {"gpt2": "c_attn", "falcon": "query_key_value"}.get(family, "q_proj")
    if "lora" in how:
        settings = lora(target_modules=[target, how["lora"]])
    else:
        settings = lora(target_modules=[target], **how)
    assert_clean(save_tuned(tmp_path / "a", base, settings))


@pytest.mark.parametrize(
    "how", [{"modules_to_save": ["embed_tokens"]}, {"target_modules": ["embed_tokens"]}]
)
def test_a_tied_pair_that_peft_keeps_tied_is_healthy(tmp_path, how):
    base = save_base(tmp_path / "base", "llama-tied")
    assert_clean(save_tuned(tmp_path / "a", base, lora(ensure_weight_tying=True, **how)))


def test_repeated_layers_are_found_in_the_base_they_were_copied_from(tmp_path, llama):
    replicated = lora(layer_replication=[[0, 2], [1, 3]])
    folder = save_tuned(tmp_path / "a", llama, replicated)
    assert_clean(folder)
    edit_json(folder / "adapter_config.json", layer_replication=None)
    assert "adapter-keys-dead" in found_in(folder)


def test_an_adapter_on_a_base_without_head_is_healthy_and_on_a_strange_one_is_not(tmp_path, llama):
    bare = tmp_path / "bare"
    AutoModel.from_pretrained(llama).save_pretrained(bare)
    folder = save_tuned(tmp_path / "a", bare, lora())
    assert_clean(folder)
    gpt2 = tmp_path / "gpt2"
    AutoModelForCausalLM.from_config(MODELS["gpt2"]).save_pretrained(gpt2)
    assert "adapter-keys-dead" in found_in(folder, base=gpt2)


def test_keys_of_another_method_without_their_modules_are_dead(tmp_path, llama):
    settings = peft.OFTConfig(task_type="CAUSAL_LM", oft_block_size=4, **Q)
    folder = save_tuned(tmp_path / "a", llama, settings)
    gpt2 = tmp_path / "gpt2"
    AutoModelForCausalLM.from_config(MODELS["gpt2"]).save_pretrained(gpt2)
    assert "adapter-keys-dead" in found_in(folder, base=gpt2)


@pytest.mark.parametrize("family", ["llava", "qwen2-vl"])
def test_models_that_see_and_their_adapters_are_healthy(tmp_path, family):
    base = build_family(family, tmp_path / "base")
    assert_clean(base)
    for number, settings in enumerate((lora(), lora(use_dora=True, use_rslora=True))):
        assert_clean(
            save_tuned(tmp_path / f"a{number}", base, settings, AutoModelForImageTextToText)
        )


@pytest.mark.parametrize("shared", [1, 2])
def test_layers_that_share_keys_and_values_are_healthy(tmp_path, shared):
    config = transformers.Gemma3nTextConfig(
        **SIZES | {"num_hidden_layers": 4},
        **SPECIAL,
        head_dim=8,
        vocab_size_per_layer_input=96,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=shared,
        laurel_rank=4,
        activation_sparsity_pattern=None,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "m")
    assert_clean(tmp_path / "m")
    edit_json(tmp_path / "m" / "config.json", num_kv_shared_layers=0)
    lost = {r.name for r in diagnose(tmp_path / "m").findings}
    assert lost == ({"missing-tensors"} if shared == 1 else set())
