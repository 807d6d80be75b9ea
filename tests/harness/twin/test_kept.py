"""Trained weights are looked for in the files under their own names."""

import torch
from safetensors.torch import save_file

from harness.twin.asked import Asked
from harness.twin.kept import _compare_file

ASKED = Asked(settings={"method": "full", "use_peft": None})


def compare(folder, final):
    return [(one.what, one.tensor) for one in _compare_file(ASKED, final, folder)]


def test_a_trained_tensor_that_was_not_saved_is_told(tmp_path):
    weight = torch.arange(4.0)
    save_file({"_orig_mod.a": weight}, tmp_path / "model.safetensors")

    assert [("a trained tensor that the files do not hold", "a")] == compare(
        tmp_path, {"a": weight}
    )


def test_of_tied_weights_one_in_the_files_is_enough(tmp_path):
    weight = torch.arange(4.0)
    save_file({"a": weight}, tmp_path / "model.safetensors")

    assert not compare(tmp_path, {"a": weight, "b": weight.clone()})
    assert compare(tmp_path, {"a": weight, "b": weight + 1})
