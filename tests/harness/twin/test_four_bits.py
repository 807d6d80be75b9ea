"""The twin packs bases as the engine does, though it was written apart."""

from typing import Any

import pytest
import torch

from harness.twin.asked import Asked
from harness.twin.four_bits import round_to_4_bits
from mudpuppy.quant.formats import FORMATS

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"quant_block_size": 16},
    {"quant_block_size": 7},
    {"quant_search": 6},
    {"quant": "int4"},
    {"quant": "int4", "quant_search": 6, "quant_block_size": 32},
    {"quant": "mxfp4"},
)


@pytest.mark.parametrize("more", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_base_is_rounded_as_the_engine_rounds_it(more: dict[str, Any], dtype: torch.dtype):
    asked = {"quant": None, "quant_block_size": None, "quant_search": 0} | more
    weight = torch.randn(48, 150, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[3] = 0.0
    weight[4] *= 1e-6
    form = FORMATS[asked["quant"] or "nf4"]
    packed = form.quantise(weight, asked["quant_block_size"], asked["quant_search"])
    assert torch.equal(
        round_to_4_bits(weight, Asked(settings=asked)), form.dequantise(packed, dtype)
    )
