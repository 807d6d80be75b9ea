"""Which device holds which layer: worked out from sizes, on devices that are made up."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from mudpuppy.errors import ConfigError
from mudpuppy.memory.placement import Device, auto_map, map_model, part_bytes, pipeline_map, place
from mudpuppy.tiny import resolve_model

GIB = 2**30


def gpus(*sizes: int) -> list[Device]:
    return [Device(index=i, memory=size) for i, size in enumerate(sizes)]


@given(st.lists(st.integers(1, 9), min_size=4, max_size=30), st.integers(2, 4))
def test_stages_are_consecutive_and_none_is_empty(sizes, count):
    placed = pipeline_map("m.layers", sizes, {}, gpus(*[GIB] * count), is_tied=False)
    stages = [placed[f"m.layers.{i}"] for i in range(len(sizes))]

    assert stages == sorted(stages)
    assert set(range(count)) == set(stages)


def test_equal_layers_make_equal_stages():
    placed = pipeline_map("l", [5] * 12, {}, gpus(GIB, GIB, GIB), is_tied=False)
    assert [0] * 4 + [1] * 4 + [2] * 4 == [placed[f"l.{i}"] for i in range(12)]


def test_a_tied_head_stays_with_the_embeddings():
    beside = {"model.embed_tokens": 1, "model.norm": 1, "lm_head": 1}
    two = gpus(GIB, GIB)
    untied = pipeline_map("model.layers", [1, 1], beside, two, is_tied=False)
    tied = pipeline_map("model.layers", [1, 1], beside, two, is_tied=True)

    assert (0, 1, 1) == tuple(untied[name] for name in beside)
    assert (0, 1, 0) == tuple(tied[name] for name in beside)


def test_auto_fills_the_first_device_before_the_next():
    placed = auto_map("l", [10] * 4, {}, gpus(100, 100), factor=4.0, is_tied=False)
    assert [0, 0, 1, 1] == [placed[f"l.{i}"] for i in range(4)]
    roomy = auto_map("l", [10] * 4, {}, gpus(1000, 1000), factor=4.0, is_tied=False)
    assert {0} == set(roomy.values())
    with pytest.raises(ConfigError, match="does not fit"):
        auto_map("l", [10] * 4, {}, gpus(50, 50), factor=4.0, is_tied=False)


@pytest.mark.parametrize("devices", [[], gpus(GIB)])
def test_a_pipeline_needs_two_devices(devices):
    with pytest.raises(ConfigError, match="needs two GPUs"):
        pipeline_map("l", [1, 1], {}, devices, is_tied=False)


def test_more_stages_than_layers_are_refused():
    with pytest.raises(ConfigError, match="2 layers cannot fill 3 stages"):
        pipeline_map("l", [1, 1], {}, gpus(GIB, GIB, GIB), is_tied=False)


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gemma2"])
def test_every_parameter_of_a_model_has_one_device(family):
    model = AutoModelForCausalLM.from_pretrained(resolve_model(f"tiny:{family}"))
    path, sizes, beside = part_bytes(model)
    placed = map_model(model, "pipeline", gpus(GIB, GIB), factor=4.0)

    whole = {id(t): t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()]}
    assert sum(sizes) + sum(beside.values()) >= sum(whole.values())
    for name, _ in model.named_parameters():
        owners = [part for part in placed if name.startswith(f"{part}.")]
        assert 1 == len(owners), name
    assert path in next(iter(placed))


def test_on_a_cpu_everything_stays_there_and_it_is_said():
    model = torch.nn.Linear(2, 2)
    choice = place(model, "auto", torch.device("cpu"), factor=1.0)
    assert "cpu" == choice.value
    assert "no second device" in choice.reason
    with pytest.raises(ConfigError, match="needs two GPUs"):
        place(model, "pipeline", torch.device("cpu"), factor=1.0)
