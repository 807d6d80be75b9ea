from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from mudpuppy.export.gguf import blocks
from mudpuppy.export.gguf.blocks import Source, is_finite, read_blocks, turn, widen
from mudpuppy.export.gguf.refusals import ExportRefused
from mudpuppy.export.gguf.tensors import Part, Planned
from mudpuppy.safefile import read_header


def store(folder: Path, **tensors: torch.Tensor) -> dict[str, Part]:
    """Write tensors to a file and return each whole."""
    path = folder / "model.safetensors"
    save_file(tensors, path)
    return {
        name: Part(entry, 0, entry.size // entry.shape[-1] // tensors[name].element_size())
        for name, entry in read_header(path).items()
    }


def read(planned: Planned) -> np.ndarray:
    source = Source()
    try:
        return np.concatenate([widen(block).copy() for block in read_blocks(planned, source)])
    finally:
        source.close()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("block_bytes", [1, 700, 1 << 20])
def test_values_are_torchs_whatever_the_blocks(
    dtype: torch.dtype, block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
    wanted = torch.randn(24, 7).to(dtype)
    part = store(tmp_path, w=wanted)["w"]

    found = read(Planned(name="w", shape=(24, 7), parts=(part,)))

    assert np.array_equal(found, wanted.float().numpy())


@pytest.mark.parametrize("block_bytes", [1, 300, 1 << 20])
def test_heads_are_turned_as_the_converter_turns_them(
    block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
    weight, bias = torch.randn(24, 7).bfloat16(), torch.randn(24).bfloat16()
    parts = store(tmp_path, w=weight, b=bias)

    def wanted(tensor: torch.Tensor) -> np.ndarray:  # two values of a head lie half a head apart
        order = [head * 8 + half * 4 + n for head in range(3) for n in range(4) for half in (0, 1)]
        return tensor[order].float().numpy()

    found = read(Planned(name="w", shape=(24, 7), parts=(parts["w"],), heads=3))
    flat = read(Planned(name="b", shape=(24,), parts=(parts["b"],), heads=3))

    assert np.array_equal(found, wanted(weight))
    assert np.array_equal(flat.ravel(), wanted(bias))


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 4))
def test_turning_only_reorders(heads: int, half: int, columns: int):
    block = np.arange(heads * 2 * half * columns).reshape(-1, columns)

    turned = turn(block, heads, False)

    assert sorted(map(tuple, turned)) == sorted(map(tuple, block))
    assert np.array_equal(
        turned.reshape(heads, half, 2, columns)[:, :, 0],
        block.reshape(heads, 2, half, columns)[:, 0],
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_shift_rounds_as_torch_does_in_the_type_that_the_converter_computes_in(
    dtype: torch.dtype, tmp_path: Path
):
    weight = (torch.randn(333) * 3).to(dtype)
    part = store(tmp_path, w=weight)["w"]
    computed = weight.float() if dtype is torch.bfloat16 else weight

    found = read(Planned(name="w", shape=(333,), parts=(part,), shift=1.0))

    assert np.array_equal(found.ravel(), (computed + 1).float().numpy())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_what_is_no_number_is_refused_by_the_tensors_name(
    value: float, dtype: torch.dtype, tmp_path: Path
):
    weight = torch.zeros(9, 5)
    weight[8, 4] = value
    part = store(tmp_path, pond=weight.to(dtype))["pond"]

    with pytest.raises(ExportRefused, match="pond holds values") as caught:
        read(Planned(name="w", shape=(9, 5), parts=(part,)))
    assert caught.value.code == "MP-X06"


def test_what_is_too_large_for_fp32_is_refused(tmp_path: Path):
    part = store(tmp_path, w=torch.full((2, 2), 1e300, dtype=torch.float64))["w"]

    with pytest.raises(ExportRefused, match="MP-X06"):
        read(Planned(name="w", shape=(2, 2), parts=(part,)))


@given(st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=20))
def test_bits_tell_finite_numbers_as_arithmetic_does(bits: list[int]):
    raw = np.asarray(bits, np.uint16)

    assert is_finite(raw, "BF16") == bool(np.isfinite(widen(raw)).all())
    assert is_finite(raw.view(np.float16), "F16") == bool(np.isfinite(raw.view(np.float16)).all())


def test_a_file_that_becomes_shorter_is_told(tmp_path: Path):
    part = store(tmp_path, w=torch.ones(100, 100))["w"]
    with (tmp_path / "model.safetensors").open("r+b") as handle:
        handle.truncate(part.entry.start + 5)

    with pytest.raises(OSError, match="became shorter"):
        read(Planned(name="w", shape=(100, 100), parts=(part,)))


def test_the_last_of_many_values_counts():
    many = np.zeros((3, blocks.PIECE), np.float32)
    many[2, -1] = np.inf

    assert not is_finite(many, "F32")
