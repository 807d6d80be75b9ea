"""Low ranks are told from noise, four bits leave a grid, and a k names the scale behind it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from harness.evidence.adapters.adapter import scaling
from harness.evidence.files.headers import read_weight_file
from harness.evidence.lineage.change_rank import lies_on_grid, sketch_rank
from harness.evidence.lineage.merge_story import name_scale

SHAPES = [(16, 32), (32, 32), (32, 48), (128, 512), (700, 300)]


def blocks(matrix, rows=50):
    return [matrix[first : first + rows] for first in range(0, len(matrix), rows)]


def low_rank(shape, rank, seed=1):
    random = np.random.default_rng(seed)
    left = random.standard_normal((shape[0], rank)).astype(np.float32)
    return left @ random.standard_normal((rank, shape[1])).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_a_low_rank_is_found_under_the_noise_of_rounding(shape, rank):
    matrix = low_rank(shape, rank)
    noise = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    noisy = matrix + noise * (0.05 * np.linalg.norm(matrix) / np.linalg.norm(noise))
    assert sketch_rank(blocks(matrix), shape[1]) == rank
    assert sketch_rank(blocks(noisy), shape[1]) == rank


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(5))
def test_noise_has_no_low_rank(shape, seed):
    noise = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    assert sketch_rank(blocks(noise), shape[1]) is None


def test_nothing_and_nonsense_have_no_rank():
    assert sketch_rank([], 8) is None
    assert sketch_rank([np.zeros((8, 8), np.float32)], 8) is None
    assert sketch_rank([np.full((8, 8), np.nan, np.float32)], 8) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block", [32, 64, 128])
def test_values_of_four_bits_lie_on_a_grid_and_others_do_not(tmp_path, dtype, block):
    torch.manual_seed(0)
    plain = torch.randn(64, 256) * 0.02
    parts = plain.reshape(-1, block)
    scale = parts.abs().amax(dim=1, keepdim=True) / 7
    rounded = ((parts / scale).round() * scale).reshape(plain.shape)
    path = tmp_path / "model.safetensors"
    save_file({"plain": plain.to(dtype), "rounded": rounded.to(dtype)}, path)
    tensors = {one.name: one for one in read_weight_file(path, path.name).tensors}
    assert lies_on_grid(tmp_path, tensors["rounded"])
    assert not lies_on_grid(tmp_path, tensors["plain"])


SETTINGS = {"r": 16, "lora_alpha": 32}
PATTERNED = {**SETTINGS, "alpha_pattern": {"q_proj": 128}, "rank_pattern": {"v_proj": 4}}


@pytest.mark.parametrize(
    ("settings", "module", "used", "words"),
    [
        (SETTINGS, "q_proj", -2.0, "subtracted"),
        (SETTINGS, "q_proj", 8.0, "use_rslora were set"),
        (SETTINGS, "q_proj", 32.0, "alpha alone"),
        (SETTINGS, "q_proj", 1.0, "without alpha and rank"),
        (SETTINGS, "q_proj", 0.5, "PEFT's default"),
        (SETTINGS, "q_proj", 6.0, "added 3 times"),
        ({**SETTINGS, "use_rslora": True}, "q_proj", 2.0, "use_rslora were not set"),
        (PATTERNED, "q_proj", 2.0, "without alpha_pattern"),
        (PATTERNED, "v_proj", 2.0, "rank of the whole adapter"),
        (SETTINGS, "q_proj", 1.3125, "lora_alpha were 21 instead of 32"),
    ],
)
def test_a_k_names_the_scale_that_was_used(settings, module, used, words):
    k = used / scaling(settings, module)
    assert words in name_scale(settings, module, k)


def test_a_k_that_fits_nothing_has_no_name():
    assert name_scale({"r": 3, "lora_alpha": 1}, "q_proj", 0.4321) == ""
    assert name_scale({"r": 0, "lora_alpha": 1}, "q_proj", 2.0) == ""
