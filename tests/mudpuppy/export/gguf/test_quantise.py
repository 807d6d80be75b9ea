import os
import threading

import gguf
import numpy as np
import pytest

from mudpuppy.errors import EngineError
from mudpuppy.export.gguf import libraries, quantise
from mudpuppy.export.gguf.quantise import Quantiser, open_quantiser, type_form
from mudpuppy.export.gguf.refusals import ExportRefused

NATIVE = ("Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_0", "Q5_0", "Q5_1")
PLAIN = ("F32", "F16", "BF16", "Q8_0")
xllamacpp = pytest.mark.skipif(
    not list(libraries._packaged("xllamacpp")), reason="xllamacpp is not installed"
)


def weights(rows=40, columns=512):
    return (np.random.default_rng(3).standard_normal((rows, columns)) * 0.02).astype(np.float32)


@pytest.fixture(scope="module")
def native():
    if not list(libraries._packaged("xllamacpp")):
        pytest.skip("xllamacpp is not installed")
    with open_quantiser(NATIVE) as quantiser:
        yield quantiser


def test_plain_types_need_no_library(monkeypatch):
    monkeypatch.setattr(quantise, "find_candidates", lambda _: pytest.fail("looked for one"))

    with open_quantiser(PLAIN) as quantiser:
        assert quantiser.name.startswith("numpy")
        assert quantiser.whole_file is None
        assert quantiser.quantise(weights(), "Q8_0").shape == (40, 544)
        with pytest.raises(ValueError, match="makes no Q4_K"):
            quantiser.quantise(weights(), "Q4_K")


@pytest.mark.parametrize("name", ["Q4_0", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16"])
def test_bytes_are_those_of_the_gguf_package(native, name):
    rows = weights()
    expected = gguf.quants.quantize(rows, gguf.GGMLQuantizationType[name])

    assert native.quantise(rows, name).tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ["Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_k_types_come_back_near_what_they_were(native, name):
    rows = weights()
    number = gguf.GGMLQuantizationType[name]
    found = gguf.quants.dequantize(native.quantise(rows, name), number)
    error = np.sqrt(np.mean((found - rows) ** 2.0)) / np.sqrt(np.mean(rows**2.0))
    bits = int(name[1])

    assert 0.4 * 2.0**-bits < error < 1.4 * 2.0**-bits


@pytest.mark.parametrize("name", [*NATIVE, *PLAIN])
def test_pieces_and_threads_change_nothing(native, name, monkeypatch):
    rows = weights(33)
    whole = native.quantise(rows, name)
    monkeypatch.setattr(quantise, "PIECE_VALUES", 1)
    monkeypatch.setattr(quantise, "SLOW_PIECE_VALUES", 1)
    native_threads = Quantiser("x", library=native._library, threads=4)

    assert np.array_equal(whole, native_threads.quantise(rows, name))
    native_threads.close()


@pytest.mark.parametrize("name", ["Q4_K", "Q5_0", "Q8_0"])
def test_stored_floats_of_16_bits_are_quantised_as_the_values_they_are(native, name):
    bits = (weights().view(np.uint32) >> 16).astype(np.uint16)
    values = (bits.astype(np.uint32) << 16).view(np.float32)
    halves = weights().astype(np.float16)

    assert np.array_equal(native.quantise(values, name), native.quantise(bits, name))
    exact = halves.astype(np.float32)
    assert np.array_equal(native.quantise(exact, name), native.quantise(halves, name))


@pytest.mark.parametrize("name", ["Q4_K", "Q8_0"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_no_number_is_refused(native, name, wrong):
    rows = weights()
    rows[7, 7] = wrong

    with pytest.raises(EngineError, match=name):
        native.quantise(rows, name)


def test_rows_that_blocks_do_not_fill_never_reach_the_library(native):
    with pytest.raises(ValueError, match=r"Q4_K cannot hold rows of shape \(2, 96\)"):
        native.quantise(weights(2, 96), "Q4_K")


def test_an_empty_tensor_has_no_bytes(native):
    assert native.quantise(weights(0), "Q4_K").shape == (0, 288)


def test_nothing_that_can_quantise_is_told_with_everything_that_was_tried(monkeypatch, tmp_path):
    broken = tmp_path / "libggml-base.so"
    broken.write_text("no library")
    found = [libraries.Candidate(name="broken 1.0", path=broken, is_library=True)]
    monkeypatch.setattr(quantise, "find_candidates", lambda _: found)

    with pytest.raises(ExportRefused) as caught, open_quantiser(["Q4_K", "F32", "Q6_K"]):
        pass
    assert "nothing here can quantise to Q4_K, Q6_K" in str(caught.value)
    assert f"broken 1.0 ({broken})" in str(caught.value)
    assert "mudpuppy[serve]" in caught.value.hint


@xllamacpp
def test_the_next_candidate_takes_the_place_of_a_broken_one(monkeypatch, tmp_path):
    broken = tmp_path / "libggml-base.so"
    broken.write_text("no library")
    found = [libraries.Candidate(name="broken", path=broken, is_library=True)]
    found += libraries._packaged("xllamacpp")
    monkeypatch.setattr(quantise, "find_candidates", lambda _: found)

    with open_quantiser(["Q4_K"]) as quantiser:
        assert quantiser.name.startswith("xllamacpp 20")


def test_a_program_alone_makes_whole_files(tmp_path):
    program = tmp_path / "llama-quantize"
    program.write_text("#!/bin/sh\necho usage: Q4_K_M\nexit 1\n")
    program.chmod(0o755)

    with open_quantiser(["Q4_K"], tmp_path) as quantiser:
        assert quantiser.whole_file is not None
        assert quantiser.whole_file.program == program
        assert str(program) in quantiser.name


def test_threads_end_with_the_quantiser():
    before = threading.active_count()
    with open_quantiser(PLAIN) as quantiser:
        quantiser.quantise(weights(), "Q8_0")
        assert threading.active_count() > before
    assert threading.active_count() == before


def test_only_processors_that_may_be_used_are_counted():
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system does not say")
    mine = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mine)})
        assert quantise.usable_processors() == 1
    finally:
        os.sched_setaffinity(0, mine)


def test_an_unknown_type_is_named():
    with pytest.raises(ValueError, match="Q9_K"):
        type_form("Q9_K")
