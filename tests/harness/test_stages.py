"""Counting adapters in what a stage left, by the names of its tensors alone."""

from __future__ import annotations

import pytest

from harness.stages import count_adapters

LAYER = "layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("names", "number"),
    [
        ([f"model.{LAYER}.weight"], 0),
        ([f"base_model.model.model.{LAYER}.lora_A.weight"], 1),
        ([f"base_model.model.model.{LAYER}.lora_A.default.weight"], 1),
        ([f"base_model.model.base_model.model.model.{LAYER}.lora_B.weight"], 2),
        ([f"base_model.model.model.{LAYER}.lora_A.{n}.weight" for n in ("a", "b", "c")], 3),
    ],
)
def test_adapters_beside_and_inside_each_other_are_counted(names: list[str], number: int):
    assert number == count_adapters(names)
