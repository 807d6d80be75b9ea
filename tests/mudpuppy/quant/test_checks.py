"""The refusals of damaged checkpoints that no single format owns."""

import pytest
import torch

from mudpuppy.quant.checks import (
    Form,
    QuantisedModelError,
    require_groups,
    require_parts,
    require_scales,
)


def test_scales_that_a_writer_makes_pass():
    require_scales("x", "scales", torch.tensor([0.0, 1e-38, 3e38]))
    require_scales("x", "scales", torch.tensor([], dtype=torch.float16))
    require_scales("x", "scales", torch.tensor([-1.0]), signed=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(
    ("value", "what"),
    [(float("nan"), "NaN"), (float("inf"), "NaN"), (-float("inf"), "NaN"), (-1e-5, "below zero")],
)
def test_other_scales_do_not(value, what, dtype):
    scales = torch.ones(40, dtype=dtype)
    scales[39] = value
    with pytest.raises(QuantisedModelError, match=f"MP-Q04: here: 1 of 40 scales are {what}"):
        require_scales("here", "scales", scales.view(8, 5))


def test_groups_that_are_there_pass():
    require_groups("x", torch.tensor([1, 0, 1, 0]), 2, 2)
    require_groups("x", torch.tensor([0, 0, 0], dtype=torch.int32), 2)


@pytest.mark.parametrize(
    ("index", "size", "what"),
    [
        ([0, 1, 2, 0], 2, "names the groups 0 to 2, and there are 2"),
        ([0, -1, 1, 0], 2, "names the groups -1 to 1"),
        ([0, 0, 0, 1], 2, "puts 3 inputs into one group, and 2 is declared"),
    ],
)
def test_other_groups_do_not(index, size, what):
    with pytest.raises(QuantisedModelError, match=what) as caught:
        require_groups("here", torch.tensor(index, dtype=torch.int32), 2, size)
    assert caught.value.code == "MP-Q05"


def test_parts_must_be_there_in_their_form():
    wanted = {"a": Form(("F16", "F32"), (2, 3))}
    require_parts("x", {"a": ("F16", (2, 3)), "more": ("U8", (1,))}, wanted)
    for found, code in (
        ({}, "MP-Q02"),
        ({"a": ("BF16", (2, 3))}, "MP-Q03"),
        ({"a": ("F16", (3, 2))}, "MP-Q03"),
    ):
        with pytest.raises(QuantisedModelError) as caught:
            require_parts("x", found, wanted)
        assert caught.value.code == code
