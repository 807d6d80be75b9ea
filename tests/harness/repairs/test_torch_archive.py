"""Pickled tensors are read without unpickling: the same values, or a refusal."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from contextlib import closing
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from harness.repairs.draft import NotCertain
from harness.repairs.torch_archive import TorchArchive
from harness.repairs.write import make_header

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32]
DTYPES += [torch.int16, torch.int8, torch.uint8, torch.bool]


def read(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of an archive by way of the safetensors that are made of it."""
    with closing(TorchArchive(path)) as archive:
        described = [(t.name, t.dtype, t.shape, t.num_bytes) for t in archive.tensors]
        data = b"".join(part for t in archive.tensors for part in archive.read(t))
    return load(make_header(described, None) + data)


def raw(tensor: torch.Tensor) -> list[int]:
    return tensor.clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8).tolist()


def assert_same(path: Path) -> None:
    expected = torch.load(path, weights_only=True)
    found = read(path)
    assert list(found) == list(expected) or set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert raw(found[name]) == raw(tensor)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    dtype=st.sampled_from(DTYPES),
    permute=st.booleans(),
    cut=st.booleans(),
)
def test_any_tensor_has_the_values_that_torch_reads(tmp_path_factory, shape, dtype, permute, cut):
    tensor = (torch.randn(shape) * 40).to(dtype)
    if permute:
        tensor = tensor.permute(*reversed(range(tensor.ndim)))
    if cut:
        tensor = tensor[tensor.shape[0] // 2 :]
    path = tmp_path_factory.mktemp("archive") / "pytorch_model.bin"
    torch.save({"a.weight": tensor, "b": torch.arange(3)}, path)

    assert_same(path)


def test_a_state_dict_of_a_module_with_shared_weights_is_read(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 3), torch.nn.Linear(3, 4))
    model[2].weight = model[0].weight
    torch.save(model.state_dict(), tmp_path / "m.bin")

    assert_same(tmp_path / "m.bin")


def test_parameters_are_read_as_tensors(tmp_path):
    torch.save({"w": torch.nn.Parameter(torch.randn(2, 2))}, tmp_path / "m.bin")

    assert_same(tmp_path / "m.bin")


class Bomb:
    """Runs a command where it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def archive(path: Path, content: bytes, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("m/data.pkl", content)
        for name, data in members.items():
            made.writestr(f"m/data/{name}", data)
    return path


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"state": {"w": torch.zeros(2)}}, "no tensor"),
        ({"w": torch.zeros(2), "step": 3}, "no tensor"),
        ([torch.zeros(2)], "dictionary"),
        ({"w": torch.zeros(1).expand(4)}, "repeats"),
        ({}, "dictionary"),
    ],
)
def test_what_is_no_dictionary_of_tensors_is_refused(tmp_path, content, reason):
    torch.save(content, tmp_path / "m.bin")

    with pytest.raises(NotCertain, match=reason):
        TorchArchive(tmp_path / "m.bin")


def test_a_pickle_that_would_run_a_command_runs_nothing(tmp_path):
    target = tmp_path / "touched"
    torch.save({"w": torch.zeros(2), "x": Bomb(target)}, tmp_path / "m.bin")
    bare = tmp_path / "bare.bin"
    bare.write_bytes(pickle.dumps({"x": Bomb(target)}))

    for path in (tmp_path / "m.bin", bare, archive(tmp_path / "z.bin", pickle.dumps(Bomb(target)))):
        with pytest.raises(NotCertain):
            TorchArchive(path)
    assert not target.exists()


@pytest.mark.parametrize("place", range(0, 900, 7))
def test_a_damaged_archive_is_refused_or_read_and_never_anything_else(tmp_path, place):
    path = tmp_path / "m.bin"
    torch.save({"w": torch.randn(4, 4), "v": torch.zeros(3)}, path)
    raw = bytearray(path.read_bytes())
    raw[place % len(raw)] ^= 1 << (place % 8)
    path.write_bytes(raw)
    try:
        with closing(TorchArchive(path)) as found:
            for tensor in found.tensors:
                assert sum(map(len, found.read(tensor))) == tensor.num_bytes
    except (NotCertain, zipfile.BadZipFile):
        return


def test_a_compressed_storage_is_refused(tmp_path):
    """torch never compresses; a few kilobytes could stand for gigabytes."""
    torch.save({"w": torch.zeros(100_000)}, tmp_path / "m.bin")
    packed = tmp_path / "packed.bin"
    with zipfile.ZipFile(tmp_path / "m.bin") as old, zipfile.ZipFile(packed, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED)

    with pytest.raises(NotCertain, match="storage"):
        TorchArchive(packed)


def test_torchs_old_format_is_refused(tmp_path):
    torch.save({"w": torch.zeros(2)}, tmp_path / "m.bin", _use_new_zipfile_serialization=False)

    with pytest.raises(NotCertain, match="no zip archive"):
        TorchArchive(tmp_path / "m.bin")


def test_an_archive_in_memory_of_a_stranger_with_two_pickles_is_refused(tmp_path):
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(2)}, buffer)
    path = tmp_path / "m.bin"
    path.write_bytes(buffer.getvalue())
    with zipfile.ZipFile(path, "a") as made:
        made.writestr("other/data.pkl", b"\x80\x02}.")

    with pytest.raises(NotCertain):
        TorchArchive(path)
