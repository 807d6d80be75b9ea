"""The pass over all values finds every one that is not finite, and agrees with numpy otherwise."""

import os

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.evidence.source import Options
from harness.evidence.values import scan as scanning
from harness.evidence.values.arrays import FLOAT_TYPES, decode
from harness.evidence.values.bits import FORMS
from harness.evidence.values.compiled import kernel as kernels
from harness.evidence.values.compiled.choose import COMPILE_BYTES, choose
from harness.evidence.values.numbers import measure
from harness.evidence.values.rows import describe_rows
from harness.evidence.values.scan import scan
from harness.facts.checkpoint import Tensor
from harness.registry import Missing

BAD = {
    "F64": (np.nan, np.inf, -np.inf),
    "F32": (np.nan, np.inf, -np.inf),
    "F16": (np.nan, np.inf, -np.inf),
    "BF16": (np.nan, np.inf, -np.inf),
    "F8_E5M2": (np.nan, np.inf, -np.inf),
    **dict.fromkeys(("F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"), (np.nan,)),
}
BUFFER = 64
"""Bytes that are read at once here, so that a few values have many edges."""


@pytest.fixture(autouse=True, params=["numpy", "compiled"])
def _path(request, monkeypatch):
    """Both passes, with chunks that are small."""
    monkeypatch.setattr(scanning, "CHUNK_BYTES", BUFFER)
    monkeypatch.setattr(scanning, "JOB_BYTES", 5 * BUFFER)
    monkeypatch.setattr(kernels, "CHUNK_BYTES", BUFFER)
    kernel = choose(COMPILE_BYTES).kernel if request.param == "compiled" else None
    if kernel is None and request.param == "compiled":
        pytest.skip(choose(COMPILE_BYTES).why)
    monkeypatch.setattr(scanning, "find_kernel", lambda total_bytes: kernel)


def save(folder, values, dtype, shape=None):
    raw = values.tobytes()
    (folder / "f").write_bytes(b"header" + raw)
    shape = values.shape if shape is None else shape
    return Tensor(name="t", dtype=dtype, shape=shape, start=6, end=6 + len(raw), file="f")


@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_a_single_bad_value_is_found_wherever_it_is(tmp_path_factory, data):
    dtype = data.draw(st.sampled_from(sorted(BAD)))
    rows = data.draw(st.integers(1, 12))
    width = data.draw(st.integers(1, 70))
    place = data.draw(st.integers(0, rows * width - 1))
    bad = data.draw(st.sampled_from(BAD[dtype]))
    values = np.abs(np.random.default_rng(place).standard_normal(rows * width)) + 0.5
    values = values.astype(FLOAT_TYPES[dtype])
    if dtype != "F8_E8M0":
        values[::3] = -values[::3]
    clean = values.astype(np.float64)
    values[place] = bad
    folder = tmp_path_factory.mktemp("one")
    found = measure(folder, save(folder, values, dtype, (rows, width)))
    assert found.nonfinite == 1
    rest = np.delete(clean, place)
    if rest.size:
        assert (found.low, found.high) == (rest.min(), rest.max())


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_all_patterns_of_bits_are_judged_as_numpy_does(tmp_path_factory, data):
    dtype = data.draw(st.sampled_from(sorted(FLOAT_TYPES)))
    raw = data.draw(st.binary(min_size=8, max_size=400))
    values = np.frombuffer(raw[: len(raw) // 8 * 8], FLOAT_TYPES[dtype])
    folder = tmp_path_factory.mktemp("bits")
    found = measure(folder, save(folder, values, dtype))
    with np.errstate(invalid="ignore"):
        wide = values.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    assert found.nonfinite == wide.size - finite.size
    if finite.size:
        assert (found.low, found.high) == (finite.min(), finite.max())
    zeros = np.cumprod((wide == 0)[::-1]).sum()
    assert found.trailing_zeros == zeros
    same = not found.nonfinite and finite.size and finite.min() == finite.max()
    assert (found.constant is not None) == bool(same)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
@pytest.mark.parametrize("width", [9, 16, 30])
def test_rows_are_summed_as_numpy_does(tmp_path, dtype, width):
    values = (np.random.default_rng(0).standard_normal((50, width)) * 0.3).astype(
        FLOAT_TYPES[dtype]
    )
    values[7] = 0
    values[20:23] = 0
    values[:, 4] = 0
    values[30] = values[40] = values[3]
    tensor = save(tmp_path, values, dtype)
    (found,) = scan(tmp_path, [tensor], rows=True)
    facts = describe_rows(tmp_path, found)
    wide = values.astype(np.float64)
    assert facts.rms == pytest.approx(np.sqrt((wide**2).mean()), rel=1e-5)
    assert facts.zero_rows == (7, 20, 21, 22)
    assert (facts.zero_row_count, facts.zero_columns, facts.repeated) == (4, 1, 2)
    assert facts.rows == 50


def test_rows_that_only_share_their_mark_are_not_repeated(tmp_path):
    tensor = save(tmp_path, np.eye(32, dtype="<f4"), "F32")
    (found,) = scan(tmp_path, [tensor], rows=True)
    assert describe_rows(tmp_path, found).repeated == 0


def test_tiny_values_are_no_zeros(tmp_path):
    values = np.full((4, 16), 1e-30, "<f4")
    (found,) = scan(tmp_path, [save(tmp_path, values, "F32")], rows=True)
    assert describe_rows(tmp_path, found).zero_row_count == 0
    assert not measure(tmp_path, found.tensor).is_zero


def test_half_precision_of_every_size_is_squared_exactly(tmp_path):
    values = np.arange(0x7C00, dtype=np.uint16).view("<f2").reshape(-1, 16)
    (found,) = scan(tmp_path, [save(tmp_path, values, "F16")], rows=True)
    squares = np.concatenate([one.squares for one in found.sums])
    wide = (values.astype(np.float64) ** 2).sum(axis=1)
    np.testing.assert_allclose(squares, wide, rtol=1e-6)


def test_a_file_that_shrinks_gives_a_reason(tmp_path):
    tensor = save(tmp_path, np.ones((40, 40), "<f4"), "F32")
    os.truncate(tmp_path / "f", 2000)
    with pytest.raises(Missing, match="f ends inside t"):
        measure(tmp_path, tensor)
    (tmp_path / "f").unlink()
    with pytest.raises(Missing, match="No such file"):
        measure(tmp_path, tensor)


def test_tensors_come_in_order_whatever_their_sizes_and_files(tmp_path):
    rng = np.random.default_rng(0)
    wanted, tensors = [], []
    for number in range(40):
        values = rng.standard_normal(int(rng.integers(0, 300))).astype("<f4")
        name = f"f{number % 3}"
        start = (tmp_path / name).stat().st_size if (tmp_path / name).exists() else 0
        with (tmp_path / name).open("ab") as handle:
            handle.write(values.tobytes())
        tensors.append(
            Tensor(
                name=str(number),
                dtype="F32",
                shape=values.shape,
                start=start,
                end=start + values.nbytes,
                file=name,
            )
        )
        wanted.append(values)
    found = list(scan(tmp_path, tensors))
    assert [one.tensor.name for one in found] == [one.name for one in tensors]
    for one, values in zip(found, wanted, strict=True):
        if values.size:
            top = decode(one.extremes.bits(one.extremes.high), "F32")[0]
            assert top == values.max()


def test_a_sample_reads_a_part_and_finds_what_is_everywhere(tmp_path, monkeypatch):
    monkeypatch.setattr(scanning, "LEAST_SAMPLED", 4)
    values = np.full((9000, 2048), 0.5, ml_dtypes.bfloat16)
    tensor = save(tmp_path, values, "BF16")
    (found,) = scan(tmp_path, [tensor], rows=True, quick=True)
    assert not found.is_complete
    assert found.bytes_read == scanning.PLACES * scanning.PLACE_BYTES
    values[::2] = np.nan
    tensor = save(tmp_path, values, "BF16")
    (found,) = scan(tmp_path, [tensor], rows=True, quick=True)
    share = found.extremes.nonfinite * 2 / found.bytes_read
    assert share == pytest.approx(0.5, abs=0.1)


def test_every_float_type_of_the_format_has_a_form():
    assert set(FLOAT_TYPES) <= set(FORMS)


def test_the_places_of_a_sample_follow_from_its_seed_alone(monkeypatch):
    monkeypatch.setattr(scanning, "LEAST_SAMPLED", 4)

    def places(seed):
        return list(scanning._spans(1 << 25, 16, (seed, 0), quick=True))

    assert places(1) == places(1)
    assert places(1) != places(2)
    assert Options().seed != Options().seed
