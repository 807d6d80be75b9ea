"""Against gguf.quants, which llama.cpp's converter writes with."""

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mudpuppy.export.gguf.plainblocks import WRITERS, has_finite_scales, to_float32
from mudpuppy.export.gguf.quantise import type_form

KINDS = {name: gguf.GGMLQuantizationType[name] for name in WRITERS}
finite = st.floats(-(2.0**99), 2.0**99, width=32)


def written(rows, name):
    out = np.empty((rows.shape[0], type_form(name).row_bytes(rows.shape[1])), np.uint8)
    WRITERS[name](rows, out)
    return out


def reference(values, name):
    with np.errstate(all="ignore"):
        made = gguf.quants.quantize(values, KINDS[name])
    return np.ascontiguousarray(made).view(np.uint8).reshape(values.shape[0], -1)


def weights(scale=0.02, shape=(64, 96)):
    return (np.random.default_rng(1).standard_normal(shape) * scale).astype(np.float32)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("scale", [0.02, 1e-6, 1e-39, 300.0])
def test_float32_rows_become_the_bytes_that_gguf_writes(name, scale):
    rows = weights(scale)

    assert np.array_equal(reference(rows, name), written(rows, name))


@pytest.mark.parametrize("name", WRITERS)
def test_every_bfloat16_becomes_the_bytes_that_gguf_writes(name):
    every = np.arange(1 << 16, dtype=np.uint16)
    if name == "Q8_0":  # a block has one scale: neighbours in size show all its integers
        every = every[np.isfinite(to_float32(every))]
        every = every[: len(every) // 32 * 32]
    rows = every.reshape(-1, 32)
    expected = reference(to_float32(rows), name)
    found = written(rows, name)
    if name in ("F16", "F32"):  # a NaN stays one, whatever its payload
        kind = np.float16 if name == "F16" else np.float32
        assert np.array_equal(expected.view(kind), found.view(kind), equal_nan=True)
        is_number = ~np.isnan(expected.view(kind))
        assert np.array_equal(expected.view(kind)[is_number], found.view(kind)[is_number])
    elif name == "BF16":
        is_nan = np.isnan(to_float32(rows))
        same = expected.view(np.uint16) == found.view(np.uint16)
        assert (same | is_nan).all()
    else:
        assert np.array_equal(expected, found)


@pytest.mark.parametrize("name", WRITERS)
def test_every_float16_becomes_the_bytes_that_gguf_writes(name):
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    rows = every[np.isfinite(every)][: 63_488 // 32 * 32].reshape(-1, 32)

    assert np.array_equal(reference(rows.astype(np.float32), name), written(rows, name))


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=150, deadline=None)
@given(rows=hnp.arrays(np.float32, (2, 32), elements=finite))
def test_any_finite_rows_become_the_bytes_that_gguf_writes(name, rows):
    assert np.array_equal(reference(rows, name), written(rows, name))


def test_halves_are_rounded_away_from_zero_and_what_is_below_them_is_not():
    # the scale is 1: the integers are the rounded values
    values = [127.0, 0.5, -0.5, 1.5, -2.5, 2.5, np.nextafter(np.float32(0.5), np.float32(0))]
    rows = np.zeros((1, 32), np.float32)
    rows[0, : len(values)] = values

    integers = written(rows, "Q8_0")[0, 2:].view(np.int8)

    assert integers[: len(values)].tolist() == [127, 1, -1, 2, -3, 3, 0]


def test_a_nan_survives_rounding_to_bfloat16():
    bits = np.array([[0x7F80_0001, 0xFFFF_FFFF, 0x7F80_0000, 0x3F80_8000]], np.uint32)
    found = to_float32(written(bits.view(np.float32), "BF16").view(np.uint16))

    assert np.isnan(found[0, :2]).all()
    assert found[0, 2:].tolist() == [np.inf, 1.0]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 3e38])
def test_a_scale_that_is_not_finite_is_seen(wrong):
    rows = weights()
    assert has_finite_scales(written(rows, "Q8_0"))
    rows[3, 40] = wrong

    assert not has_finite_scales(written(rows, "Q8_0"))


def test_bfloat16_and_float32_of_the_same_values_become_the_same_bytes():
    rows = written(weights(), "BF16").view(np.uint16)

    for name in WRITERS:
        assert np.array_equal(written(to_float32(rows), name), written(rows, name))
