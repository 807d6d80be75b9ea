"""Sums of int8 levels: exact at every length, whatever computes them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mudpuppy.quant import int_sums
from mudpuppy.quant.int_sums import EXACT_IN_FP32, EXACT_IN_INT32, check_int8, sum_products


@pytest.fixture(params=["units", "fp32"])
def path(request, monkeypatch):
    if request.param == "fp32":
        monkeypatch.setitem(int_sums._CHECKED, "cpu", False)
    elif not check_int8("cpu"):
        pytest.skip("torch's int8 product is not there, or adds up wrong, on this processor")
    return request.param


@given(
    sizes=st.tuples(st.integers(0, 20), st.integers(0, 70), st.integers(0, 20)),
    seed=st.integers(0, 2**16),
    floating=st.tuples(st.booleans(), st.booleans()),
    use_units=st.booleans(),
)
def test_sums_are_those_of_numpys_integers(sizes, seed, floating, use_units):
    m, k, n = sizes
    random = np.random.default_rng(seed)
    a, b = random.integers(-128, 128, (m, k)), random.integers(-128, 128, (n, k))
    left, right = (
        torch.from_numpy(x).to(torch.float32 if is_float else torch.int8)
        for x, is_float in zip((a, b), floating, strict=True)
    )
    before = dict(int_sums._CHECKED)
    int_sums._CHECKED["cpu"] = use_units and check_int8("cpu")
    try:
        found = sum_products(left, right)
    finally:
        int_sums._CHECKED.clear()
        int_sums._CHECKED.update(before)
    assert found.dtype == torch.int32
    assert np.array_equal(found.numpy(), a @ b.T)


@pytest.mark.parametrize(
    "k", [EXACT_IN_FP32, EXACT_IN_FP32 + 1, 5000, EXACT_IN_INT32, EXACT_IN_INT32 + 1]
)
def test_the_largest_sums_are_exact(path, k):
    """The worst case: each product is 128 * 128, so the sum is as large as it can be."""
    left = torch.full((3, k), -128, dtype=torch.int8)
    left[1, ::2] = 127
    right = torch.full((2, k), -128, dtype=torch.int8)
    right[0, ::3] = 127
    found = sum_products(left, right)
    assert np.array_equal(
        found.numpy(), left.numpy().astype(np.int64) @ right.numpy().T.astype(np.int64)
    )
    assert found.dtype == (torch.int32 if k <= EXACT_IN_INT32 else torch.int64)


def test_autocast_does_not_reach_the_sums(path):
    left, right = (torch.full((2, 1000), 127, dtype=torch.int8) for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert int(sum_products(left, right)[0, 0]) == 127 * 127 * 1000


@pytest.mark.parametrize("fault", ["saturates", "raises", "missing"])
def test_units_that_are_wrong_are_not_used(fault, monkeypatch):
    """Pairs of products that are added in 16 bits, as on processors without VNNI."""

    def saturating(left, right):
        pairs = (left.float()[:, :, None] * right.float()[None]).permute(0, 2, 1)
        sums = pairs.reshape(*pairs.shape[:2], -1, 2).sum(-1).clamp(-(2**15), 2**15 - 1)
        return sums.sum(-1).to(torch.int32)

    def raising(*_):
        raise RuntimeError("no kernel image is available")

    if fault == "missing":
        monkeypatch.delattr(torch, "_int_mm")
    else:
        monkeypatch.setattr(torch, "_int_mm", saturating if fault == "saturates" else raising)
    assert not check_int8("cpu")
    assert not check_int8("meta")
