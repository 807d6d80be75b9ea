"""What is said of a base that cannot be used: commands that a shell takes as they stand."""

import shlex

import pytest
import torch

from mudpuppy.base_path import ask_the_doctor, local_folder, not_finite


@pytest.mark.parametrize("name", ["plain", "two words", "it's; rm -rf x", "$HOME"])
def test_a_hint_quotes_the_folder(name, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    assert local_folder(str(folder)) == folder.resolve()
    said = ask_the_doctor(str(folder)).partition(": ")[2]
    assert shlex.split(said) == ["mudpuppy-doctor", str(folder)]
    error = not_finite(str(folder), "lm_head.weight", torch.bfloat16)
    assert shlex.split(error.hint.partition(": ")[2]) == ["mudpuppy-doctor", str(folder)]
    assert "lm_head.weight is not finite in bfloat16" in error.message


def test_half_precision_may_be_too_small():
    assert "--precision bf16" in not_finite("x", "y", torch.float16).hint


def test_what_is_not_here_is_to_be_downloaded_first():
    assert ask_the_doctor("nobody/nothing") == "download it first: hf download nobody/nothing"
