"""Every format: its definition written again in numpy, its bounds, its parts, its sizes."""

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mudpuppy.config import TrainingConfig
from mudpuppy.errors import ConfigError, EngineError
from mudpuppy.features import QUANT_BLOCK_SIZES
from mudpuppy.quant.formats import FORMATS, find_format
from mudpuppy.quant.formats.interface import CHUNK
from mudpuppy.quant.formats.selftest import relative_error

OWN = {name: FORMATS[name] for name in QUANT_BLOCK_SIZES}
every_format = pytest.mark.parametrize("form", OWN.values(), ids=OWN)
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SIZES = st.tuples(st.integers(1, 6), st.integers(1, 150), st.sampled_from([1, 7, 16, 32, 64, 100]))
SCALES = st.sampled_from([0.0, 1e-45, 1e-40, 1e-30, 1e-3, 1.0, 300.0, 1e30, 3e38])


def block_of(form, size):
    return 32 if form.name == "mxfp4" else size


def gaussian(rows, columns, scale=1.0, seed=0):
    made = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return made.clamp(-1, 1) * scale if scale > 1e38 else made * scale


def decode(form, packed):
    """The values by the definition of `mudpuppy.quant.formats.interface`, one by one."""
    raw = packed.qweight.numpy()
    if form.name == "mxfp4":
        scales = packed.scales.numpy().view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    else:
        scales = packed.scales.float().numpy()
    value = np.zeros((raw.shape[0], packed.in_features), np.float32)
    for row, column in np.ndindex(*value.shape):
        if form.name == "int8":
            level = float(raw.view(np.int8)[row, column])
        else:
            byte = int(raw[row, column // 2])
            level = form.levels[byte >> 4 if column % 2 else byte & 15]
        scale = scales[row, column // packed.block_size]
        value[row, column] = np.float32(level) * scale
    return value


@every_format
@settings(max_examples=40, deadline=None)
@given(size=SIZES, scale=SCALES, seed=st.integers(0, 2**31))
def test_values_are_level_times_scale_rounded_once(form, size, scale, seed):
    rows, columns, block = size
    packed = form.quantise(gaussian(rows, columns, scale, seed), block_of(form, block))
    expected = decode(form, packed)
    for dtype in DTYPES:
        made = form.dequantise(packed, dtype)
        assert made.dtype == dtype
        assert torch.equal(made, torch.from_numpy(expected).to(dtype)), dtype


@every_format
@settings(max_examples=40, deadline=None)
@given(size=SIZES, scale=SCALES, seed=st.integers(0, 2**31), search=st.sampled_from([0, 5]))
def test_no_value_is_farther_away_than_half_the_widest_step(form, size, scale, seed, search):
    rows, columns, block = size
    size = block_of(form, block)
    weight = gaussian(rows, columns, scale, seed)
    search = 0 if form.name in ("mxfp4", "int8") else search
    packed = form.quantise(weight, size, search)
    made = form.dequantise(packed)
    assert bool(torch.isfinite(made).all())
    # the widest half step is 2 of 6 in mxfp4 (a peak may be cut), 0.15 of 1 in nf4, 0.5 of 7 or 127
    share = {"nf4": 0.16, "int4": 1 / 14, "mxfp4": 0.26, "int8": 1 / 254}[form.name]
    share += 0.25 * (search > 0)
    padded = torch.nn.functional.pad(weight, (0, -columns % size)).view(rows, -1, size)
    bound = (padded.abs().amax(2) * share).repeat_interleave(size, 1)[:, :columns]
    # half the smallest number that the format can hold; the whole one where scales are cut
    least = {"nf4": 2.0**-133, "int4": 2.0**-146, "mxfp4": 2.0**-129, "int8": 2.0**-142}
    assert bool(((weight - made).abs() <= bound * (1 + 1e-5) + least[form.name]).all())


@every_format
@settings(max_examples=30, deadline=None)
@given(size=SIZES)
def test_the_packed_form_has_the_size_that_is_declared(form, size):
    rows, columns, block = size
    packed = form.quantise(torch.ones(rows, columns), block_of(form, block))
    assert packed.qweight.dtype == torch.uint8
    assert packed.qweight.shape == (rows, columns if form.bits == 8 else math.ceil(columns / 2))
    assert packed.scales.dtype == form.scale_dtype
    assert packed.scales.shape == (rows, math.ceil(columns / block_of(form, block)))
    held = packed.qweight.nbytes + packed.scales.nbytes
    assert held == form.packed_bytes(rows, columns, block_of(form, block))


@pytest.mark.parametrize(
    ("name", "bits"), [("nf4", 4.25), ("int4", 4.5), ("mxfp4", 4.25), ("int8", 8.5)]
)
def test_the_bits_a_weight_are_those_of_the_research(name, bits):
    form = FORMATS[name]
    assert form.bits_per_weight() == bits
    assert 8 * form.packed_bytes(128, 512) == bits * 128 * 512


@every_format
@settings(max_examples=30, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**31))
def test_every_part_is_that_part_of_the_whole(form, data, seed):
    rows, columns, block = data.draw(SIZES)
    block = block_of(form, block)
    packed = form.quantise(gaussian(rows, columns, seed=seed), block)
    unit = block * (1 + block % 2)
    left = unit * data.draw(st.integers(0, (columns - 1) // unit))
    right = data.draw(st.integers(left, columns))
    top = data.draw(st.integers(0, rows))
    bottom = data.draw(st.integers(top, rows))
    for dtype in DTYPES:
        whole = form.dequantise(packed, dtype)
        wide = torch.full((rows, columns + 3), 7.0, dtype=dtype)
        part = wide[top:bottom, 1 : 1 + right - left]  # a view whose rows are not contiguous
        form.dequantise_into(packed, part, rows=(top, bottom), columns=(left, right))
        assert torch.equal(part, whole[top:bottom, left:right])
        assert wide.count_nonzero() >= wide.numel() - part.numel()


@every_format
def test_many_rows_are_packed_as_few_are(form):
    weight = gaussian(5, CHUNK["cpu"] // 2 + 70)
    together = form.quantise(weight)
    for row in range(5):
        alone = form.quantise(weight[row : row + 1])
        assert torch.equal(together.qweight[row : row + 1], alone.qweight)
        assert torch.equal(together.scales[row : row + 1], alone.scales)


@every_format
def test_zero_weights_stay_zero_beside_others(form):
    weight = gaussian(3, 130)
    weight[1] = 0.0
    weight[2, :64] = -0.0
    made = form.dequantise(form.quantise(weight))
    assert not made[1].any()
    assert not made[2, :64].any()
    assert made[0].any()
    assert form.levels[form.zero] == 0.0


@every_format
def test_quantising_a_second_time_changes_nothing(form):
    once = form.dequantise(form.quantise(gaussian(8, 100)))
    assert torch.equal(form.dequantise(form.quantise(once)), once)


@every_format
def test_weights_of_half_precision_are_packed_by_their_values(form):
    weight = gaussian(4, 96).bfloat16()
    for one, other in zip(form.quantise(weight), form.quantise(weight.float()), strict=True):
        assert one == other if isinstance(one, int) else torch.equal(one, other)


@every_format
def test_a_gaussian_loses_what_is_declared(form):
    weight = gaussian(256, 1024)
    error = relative_error(form.dequantise(form.quantise(weight)), weight)
    assert error == pytest.approx(form.gaussian_error, rel=0.01)


@every_format
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_finite_is_refused_with_its_count(form, value):
    weight = torch.ones(3, 5)
    weight[1, 2] = value
    with pytest.raises(EngineError, match="1 of 15 weights are NaN or infinite"):
        form.quantise(weight)


@every_format
def test_a_weight_beyond_float32_is_counted(form):
    weight = torch.ones(3, 5, dtype=torch.float64)
    weight[1, 2], weight[0, 0] = 1e300, math.nan
    with pytest.raises(EngineError, match=r"2 of 15 .* infinite, 1 of them only in float32"):
        form.quantise(weight)


@every_format
@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (0, 4), (4, 0)])
def test_what_is_not_a_matrix_is_refused(form, shape):
    with pytest.raises(ValueError, match="expected a matrix"):
        form.quantise(torch.ones(shape))


@every_format
def test_a_block_size_that_cannot_be_is_refused(form):
    with pytest.raises(ValueError, match=r"at least 1, got 0|not of 0"):
        form.quantise(torch.ones(2, 2), 0)


@every_format
def test_a_part_that_does_not_begin_a_block_is_refused(form):
    packed = form.quantise(gaussian(2, 128))
    with pytest.raises(ValueError, match="does not begin a block"):
        form.dequantise_into(packed, torch.empty(2, 10), columns=(2, 12))
    with pytest.raises(ValueError, match="a buffer of shape"):
        form.dequantise_into(packed, torch.empty(2, 10))
    with pytest.raises(ValueError, match="of a matrix of 2 x 128"):
        form.dequantise_into(packed, torch.empty(2, 128), rows=(1, 3))


@every_format
def test_a_format_is_found_by_its_name_and_by_its_scheme(form):
    assert find_format(form.name) is form
    assert find_format(form.scheme) is form
    said = form.describe(32)
    assert said == {"scheme": form.scheme, "bits": form.bits, "block_size": 32}
    assert form.describe(32, 8) == {**said, "search": 8}


def test_a_format_that_nobody_knows_is_refused():
    with pytest.raises(ConfigError, match="no format 'int3'; known: nf4"):
        find_format("int3")


def test_the_settings_name_every_format_and_its_block_size():
    schema = TrainingConfig.model_json_schema()["properties"]["quant"]["anyOf"][0]
    assert set(schema["enum"]) == {*QUANT_BLOCK_SIZES}
    assert {n: f.default_block_size for n, f in OWN.items()} == QUANT_BLOCK_SIZES
