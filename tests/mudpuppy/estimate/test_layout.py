"""What the estimate says is trained is what the engine trains, for every method with an adapter."""

import gc
from typing import Any

import pytest
import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensor
from transformers import AutoConfig

from mudpuppy.adapters.attach import attach_adapter
from mudpuppy.config_check import load_config
from mudpuppy.errors import ConfigError
from mudpuppy.estimate.predict import predict
from mudpuppy.features import ADAPTER_BY_DEFAULT
from mudpuppy.methods.family import find_family
from mudpuppy.parameters import count_parameters
from mudpuppy.quant.formats import FORMATS
from mudpuppy.quant.linear4bit import replace_linears
from mudpuppy.tiny import resolve_model


def run_of(method: str, more: dict[str, Any]) -> Any:
    fixed: dict[str, Any] = {"model": "m", "dataset": "d.jsonl", "output": "o", "max_length": 16}
    if method == "grpo":
        fixed["reward_funcs"] = ["length"]
    return load_config({**fixed, "method": method, "precision": "fp32", **more})


def base_of(method: str) -> str:
    return resolve_model("tiny:llava" if method == "multimodal" else "tiny:llama")


@pytest.mark.parametrize("more", [{}, {"use_dora": True}, {"lora_target_modules": ["q_proj"]}])
@pytest.mark.parametrize("method", sorted(ADAPTER_BY_DEFAULT))
def test_as_much_is_trained_as_the_estimate_says(method: str, more: dict[str, Any]):
    run, family = run_of(method, more), find_family(method)
    settings = AutoConfig.from_pretrained(base_of(method))
    kind = getattr(transformers, family.form.auto_class)
    for name, value in family.form.settings.items():
        setattr(settings, name, value)
    model = kind.from_config(settings)
    if method == "qlora":
        replace_linears(
            model,
            FORMATS[run.resolved_quant],
            block_size=run.resolved_quant_block_size,
            compute_dtype=torch.float32,
        )
    trained = count_parameters(attach_adapter(model, run, family.task_type))

    made = predict(AutoConfig.from_pretrained(base_of(method)), run)
    assert trained.trainable == made.layout.trainable


def test_a_target_that_the_model_does_not_have_is_refused_as_in_a_run():
    run = run_of("lora", {"lora_target_modules": ["q_prj"]})

    with pytest.raises(ConfigError, match="no linear module 'q_prj'"):
        predict(AutoConfig.from_pretrained(base_of("lora")), run)


def test_predicting_leaves_no_fake_tensor_behind():
    predict(AutoConfig.from_pretrained(base_of("lora")), run_of("lora", {}))
    gc.collect()

    assert [] == [one for one in gc.get_objects() if type(one) is FakeTensor]
