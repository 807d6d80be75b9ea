"""The block that is rounded once gets what trying both of its scales would give."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mudpuppy.quant.formats.mxfp4 import Mxfp4

FORM = Mxfp4()


def try_both(blocks: torch.Tensor) -> torch.Tensor:
    """Return the least error of every block in float64, rounded at both scales."""
    levels = torch.tensor(FORM.levels, dtype=torch.float64)
    peak = blocks.abs().amax(dim=1).double()
    low = torch.exp2(torch.floor(torch.log2(peak)) - 2)
    errors = []
    for unit in (low, 2 * low):
        shares = blocks.double() / unit.unsqueeze(1)
        off = (shares.unsqueeze(2) - levels).abs().amin(dim=2)
        errors.append(off.square().sum(dim=1) * unit.square())
    return torch.minimum(*errors)


@pytest.mark.parametrize("factor", [1e-30, 1.0, 1e30])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), power=st.sampled_from([1, 3]))
def test_no_scale_is_left_out_that_is_better(factor, seed, power):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(64, 32, generator=generator) ** power * factor
    dense = FORM.dequantise(FORM.quantise(weight)).double()
    error = (dense - weight.double()).square().sum(dim=1)
    torch.testing.assert_close(error, try_both(weight), rtol=1e-4, atol=0.0)
