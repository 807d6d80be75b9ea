"""The fold: how far a merge may be off, and to which side."""

import json

import pytest
import torch
from safetensors.torch import save_file

from harness.twin.asked import Asked
from harness.twin.folding import compare_merge

NAME = "model.layers.0.self_attn.q_proj.weight"
STEM = f"base_model.model.{NAME.removesuffix('.weight')}"


def to_nearest(exact):
    return exact.to(torch.bfloat16)


def towards_zero(exact):
    words = exact.float().view(torch.int32)
    return (words & ~0xFFFF).view(torch.float32).to(torch.bfloat16)


def away_from_zero(exact):
    words = exact.float().view(torch.int32)
    return ((words + 0xFFFF) & ~0xFFFF).view(torch.float32).to(torch.bfloat16)


@pytest.fixture
def compare(tmp_path):
    """Merge with a rounding of one's own, and return what the fold finds."""

    def run(rounded, size=96):
        torch.manual_seed(0)
        weight = torch.randn(size, size).to(torch.bfloat16) * 0.05
        left, right = torch.randn(size, 4) * 0.01, torch.randn(4, size) * 0.1
        exact = weight.double() + 2.0 * (left.double() @ right.double())
        base, artefact = tmp_path / "base", tmp_path / "adapter"
        (artefact / "merged").mkdir(parents=True)
        base.mkdir()
        save_file({NAME: weight}, base / "model.safetensors")
        parts = {f"{STEM}.lora_A.weight": right, f"{STEM}.lora_B.weight": left}
        save_file(parts, artefact / "adapter_model.safetensors")
        (artefact / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
        save_file({NAME: rounded(exact)}, artefact / "merged" / "model.safetensors")
        asked = Asked(settings={"precision": "bf16", "method": "lora"})
        return compare_merge(asked, base, artefact)

    return run


def test_a_merge_to_the_nearest_value_is_the_fold(compare):
    assert compare(to_nearest) == []


@pytest.mark.parametrize(("rounded", "side"), [(towards_zero, -1), (away_from_zero, 1)])
def test_a_merge_that_rounds_to_one_side_is_not(compare, rounded, side):
    (found,) = compare(rounded)
    assert "away from zero" in found.what
    assert found.found * side > 0.5


def test_a_few_elements_say_nothing_of_a_side(compare):
    assert compare(towards_zero, size=32) == []
