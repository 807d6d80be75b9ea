"""GGUF headers: what llama.cpp's package writes is read alike, and hostile bytes do no harm."""

from __future__ import annotations

import struct

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.doctor import diagnose
from harness.evidence.gguf.file import TYPES, read_gguf_header
from harness.evidence.gguf.model import first_parts, parts_of
from harness.evidence.values.blocks import BLOCKS, count_bad_blocks, decode_blocks, is_decoded
from harness.facts.gguf import GgufArray
from harness.findings import Verdict
from harness.selftest.gguf_files import Shape, write_gguf
from harness.selftest.healthy.gguf_models import llama_3


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    write_gguf(path, Shape(hidden=64, feed=96, blocks=2), llama_3())
    return path


def read(path):
    return read_gguf_header(path, path.name)[0]


def test_the_header_is_what_the_package_reads(model):
    mine, theirs = read(model), gguf.GGUFReader(model)
    assert mine.problem == ""
    assert {t.name: (t.start, t.end - t.start) for t in mine.tensors} == {
        t.name: (t.data_offset, t.n_bytes) for t in theirs.tensors
    }
    assert {t.name: t.shape for t in mine.tensors} == {
        t.name: tuple(int(size) for size in reversed(t.shape)) for t in theirs.tensors
    }
    for key, value in mine.settings.items():
        expected = theirs.fields[key].contents()
        if isinstance(value, GgufArray):
            assert value.length == len(expected)
            assert not value.values or list(value.values) == expected
        else:
            assert value == pytest.approx(expected)


def test_every_type_of_the_package_is_known_with_its_sizes():
    for kind, (block, size) in gguf.GGML_QUANT_SIZES.items():
        if kind.name not in ("Q8_1",):  # never in files, and of another size in ggml itself
            assert TYPES[int(kind)] == (kind.name, block, size)


@pytest.mark.parametrize("dtype", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q6_K", "MXFP4"])
def test_a_bad_scale_makes_its_whole_block_bad_and_no_other(dtype):
    block, size = BLOCKS[dtype]
    assert is_decoded(dtype)
    raw = np.zeros(8 * size, np.uint8)
    if dtype == "MXFP4":
        raw[::size] = 120
    assert count_bad_blocks(raw, dtype) == 0
    assert np.isfinite(decode_blocks(raw, dtype)).all()
    place = {"Q2_K": 80, "Q6_K": 208}.get(dtype, 0)
    mark = b"\xff" if dtype == "MXFP4" else b"\x01\x7e"
    start = 3 * size + place
    raw[start : start + len(mark)] = np.frombuffer(mark, np.uint8)
    assert count_bad_blocks(raw, dtype) == 1
    if dtype != "MXFP4":  # whose decoder in the package knows no NaN
        bad = ~np.isfinite(decode_blocks(raw, dtype))
        assert np.flatnonzero(bad).tolist() == list(range(3 * block, 4 * block))


def header(count=0, pairs=0, rest=b"", version=3):
    return b"GGUF" + struct.pack("<IQQ", version, count, pairs) + rest


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"", "empty"),
        (b"GGUF", "truncated"),
        (header(count=2**60), "bad-header"),
        (header(pairs=2**60), "bad-header"),
        (header(count=5), "truncated"),
        (header(version=1), "unsupported"),
        (header(version=3 << 24), "unsupported"),
        (header(pairs=1, rest=struct.pack("<Q", 2**62)), "bad-header"),
        (header(pairs=1, rest=text(b"k") + struct.pack("<IIQ", 9, 8, 2**60)), "bad-header"),
        (header(pairs=1, rest=text(b"k") + struct.pack("<IIQ", 9, 4, 2**60)), "bad-header"),
        (header(pairs=1, rest=text(b"k") + struct.pack("<I", 77)), "bad-header"),
        (header(pairs=1, rest=text(b"k") + struct.pack("<IIQ", 9, 9, 1) * 9), "bad-header"),
        (header(pairs=2, rest=(text(b"k") + struct.pack("<IB", 0, 1)) * 2), "bad-header"),
        (header(count=1, rest=text(b"t") + struct.pack("<I", 99)), "bad-header"),
        (header(count=1, rest=text(b"t") + struct.pack("<IQIQ", 1, 7, 999, 0)), "bad-header"),
        (header(count=1, rest=text(b"t") + struct.pack("<IQIQ", 1, 7, 2, 0)), "bad-header"),
        (header(count=1, rest=text(b"t") + struct.pack("<IQIQ", 1, 7, 0, 3)), "bad-header"),
        (header(count=1, rest=text(b"t") + struct.pack("<IQIQ", 1, 2**50, 0, 0)), "truncated"),
        (
            header(
                count=2,
                rest=b"".join(
                    text(name) + struct.pack("<IQIQ", 1, 99, 0, 32 * n)
                    for n, name in enumerate((b"a", b"b"))
                )
                + bytes(999),
            ),
            "bad-header",
        ),
    ],
)
def test_what_is_wrong_with_a_header_is_said(tmp_path, raw, problem):
    path = tmp_path / "x.gguf"
    path.write_bytes(raw)
    assert read(path).problem == problem
    assert diagnose(path).verdict is not Verdict.HEALTHY


@settings(max_examples=150, deadline=2000)
@given(data=st.data())
def test_changed_bytes_do_no_harm(model, tmp_path_factory, data):
    raw = bytearray(model.read_bytes()[:20_000])
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, 600))
        raw[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "changed.gguf"
    path.write_bytes(raw)
    found = diagnose(path)
    assert not [r for r in found.probes if r.status == "crashed"]


def test_parts_of_a_split_model_are_one_model():
    names = ["a-00002-of-00002.gguf", "a-00001-of-00002.gguf", "b.gguf", "c.txt"]
    assert first_parts(names) == ["a-00001-of-00002.gguf", "b.gguf"]
    assert parts_of("a-00002-of-00002.gguf") == names[1::-1]
    assert parts_of("a-00001-of-99999.gguf") == ["a-00001-of-99999.gguf"]


def test_without_the_package_the_scales_alone_are_checked(model, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.evidence.values.blocks._load_decoder", lambda: None)
    is_decoded.cache_clear()
    try:
        assert diagnose(model).verdict is Verdict.HEALTHY
        tensor = next(t for t in read(model).tensors if t.name == "blk.1.ffn_up.weight")
        raw = bytearray(model.read_bytes())
        raw[tensor.start + 36 : tensor.start + 38] = b"\x00\x7c"
        path = tmp_path / "bad.gguf"
        path.write_bytes(raw)
        found = diagnose(path)
        assert [r.name for r in found.findings] == ["weights-nonfinite"]
        assert "blk.1.ffn_up.weight those of 1 block of" in found.findings[0].message
    finally:
        is_decoded.cache_clear()
