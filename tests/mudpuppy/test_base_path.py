"""What is said of a base that cannot be used: commands that a shell takes as they stand."""

import shlex
import subprocess
import sys

import pytest
import torch

from mudpuppy.base_path import ask_the_doctor, find_folder, local_folder, not_finite
from mudpuppy.errors import ModelError


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


@pytest.mark.parametrize("name", ["absent/deeply/inside", "./absent", "/absent", "~/absent-folder"])
def test_a_folder_that_is_not_there_is_told(name):
    with pytest.raises(ModelError, match="does not exist"):
        find_folder(name)


def test_a_hub_id_that_was_never_downloaded_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="neither a folder nor in the hub's cache") as caught:
        find_folder("some/model")
    assert caught.value.hint == "download it first: hf download some/model"


def test_a_folder_is_found_without_torch(tmp_path):
    code = (
        "import sys\nfrom mudpuppy.base_path import find_folder\n"
        f"print(find_folder({str(tmp_path)!r}))\nassert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path.resolve()}\n"), done.stderr
