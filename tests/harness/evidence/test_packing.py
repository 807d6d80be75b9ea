"""The doctor's own numpy packs as the engine does, to the last bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.evidence.values.packing import INT8, MXFP4, NF4, SCHEMES, Packing, packing_of, repack
from mudpuppy.quant.formats import find_format

every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


@every_scheme
@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 6), st.integers(1, 150), st.sampled_from([1, 7, 32, 64])),
    scale=st.sampled_from([0.0, 1e-40, 1e-3, 1.0, 1e30, 1e38]),
    seed=st.integers(0, 2**31),
    search=st.sampled_from([0, 3]),
)
def test_it_gives_the_bits_of_the_engine(scheme, size, scale, seed, search):
    rows, columns, block = size
    block, search = (32, 0) if scheme == MXFP4 else (block, search)
    search = 0 if scheme == INT8 else search
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).clamp(-3, 3)
    weight *= scale
    form = find_format(scheme)
    engine = form.dequantise(form.quantise(weight, block, search)).numpy()
    mine = repack(weight.numpy(), Packing(scheme=scheme, block_size=block, search=search))
    assert mine.dtype == np.float32
    assert np.array_equal(mine, engine)


@every_scheme
def test_provenance_says_how(scheme):
    said = find_format(scheme).describe(32, 4)
    assert packing_of({"quantisation": said}) == Packing(scheme=scheme, block_size=32, search=4)


@pytest.mark.parametrize(
    "said",
    [
        None,
        {},
        {"scheme": "other", "block_size": 32},
        {"scheme": NF4},
        {"scheme": NF4, "block_size": True},
        {"scheme": NF4, "block_size": 0},
        {"scheme": NF4, "block_size": 32, "search": 10**9},
        {"scheme": ["x"], "block_size": 32},
    ],
)
def test_what_is_not_understood_is_no_packing(said):
    assert packing_of({"quantisation": said}) is None
