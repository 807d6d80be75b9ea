"""Tensors that step as one: the bits of torch's fused AdamW, and the formula."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mudpuppy.memory import flat_adam
from mudpuppy.memory.arena import HostArena
from mudpuppy.memory.flat import Strip, plan_places
from mudpuppy.memory.flat_adam import Bucket

GROUP = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "maximize": False}


def make_bucket(weights):
    arena = HostArena(torch.device("cpu"))
    places = plan_places(weights)
    strips = Strip(places, arena), Strip(places, arena)
    keys = [strips[0].own(index) for index in range(len(places))]
    for key, weight in zip(keys, weights, strict=True):
        key.copy_(weight)
    states = {key: {} for key in keys}
    return Bucket(keys, lambda: strips[0], lambda: strips[1], arena, lambda: states)


def step_both(sizes, steps, has_gradient=lambda step, index: True, dtype=torch.float32):
    """Step a bucket and torch's fused AdamW; return both kinds of weights and the states."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(n, generator=generator).to(dtype) for n in sizes]
    bucket = make_bucket(weights)
    plain = [torch.nn.Parameter(w.clone()) for w in weights]
    optimizer = torch.optim.AdamW(plain, fused=True, **GROUP)
    for step in range(steps):
        slopes = bucket.slopes()
        given_ones = [has_gradient(step, index) for index in range(len(sizes))]
        for index, parameter in enumerate(plain):
            slope = torch.randn(sizes[index], generator=generator).to(dtype)
            slopes.own(index).copy_(slope)
            parameter.grad = slope if given_ones[index] else None
        bucket.step(given_ones, GROUP)
        optimizer.step()
    return bucket, plain, optimizer


def assert_same(bucket, plain, optimizer):
    for key, parameter in zip(bucket.keys, plain, strict=True):
        assert torch.equal(key, parameter)
        state = bucket._states()[key]
        assert state.keys() == optimizer.state[parameter].keys()
        assert all(torch.equal(v, optimizer.state[parameter][n]) for n, v in state.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_steps_to_the_bits_of_the_fused_optimizer(dtype):
    assert_same(*step_both([64, 128, 4096, 37, 64, 1, 192], 3, dtype=dtype))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([1, 3, 16, 63, 64, 65, 128, 640]), min_size=1, max_size=6))
def test_any_sizes_step_to_the_same_bits(sizes):
    assert_same(*step_both(sizes, 2))


def test_what_has_no_gradient_stays_and_does_not_age():
    bucket, plain, optimizer = step_both([64, 64, 64], 4, lambda step, index: step % 2 < index)
    assert_same(bucket, plain, optimizer)
    assert [len(bucket._states()[key]) for key in bucket.keys] == [0, 3, 3]
    assert 2.0 == float(bucket._states()[bucket.keys[1]]["step"])


def test_neighbours_step_in_one_call(monkeypatch):
    calls = []
    adamw = flat_adam.adamw
    monkeypatch.setattr(
        flat_adam, "adamw", lambda *words, **named: (calls.append(words[0]), adamw(*words, **named))
    )
    step_both([64, 128, 256, 37, 64, 64], 1)
    assert [[t.numel() for t in call] for call in calls] == [[448, 37, 128]]


def test_it_is_adamw():
    """One weight by the formula of Loshchilov and Hutter, in float64."""
    bucket = make_bucket([torch.full((64,), 0.5)])
    weight, first, second = 0.5, 0.0, 0.0
    for age, slope in enumerate((0.3, -0.1), start=1):
        bucket.slopes().own(0).fill_(slope)
        bucket.step([True], GROUP)
        weight -= GROUP["lr"] * GROUP["weight_decay"] * weight
        first = 0.9 * first + 0.1 * slope
        second = 0.95 * second + 0.05 * slope * slope
        mean, spread = first / (1 - 0.9**age), second / (1 - 0.95**age)
        weight -= GROUP["lr"] * mean / (math.sqrt(spread) + GROUP["eps"])
    assert bucket.keys[0][7].item() == pytest.approx(weight, rel=1e-6)
