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
from mudpuppy.safefile import pack_header

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32]
DTYPES += [torch.int16, torch.int8, torch.uint8, torch.bool]


def read(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of an archive by way of the safetensors that are made of it."""
    with closing(TorchArchive(path)) as archive:
        described = [(t.name, t.dtype, t.shape, t.num_bytes) for t in archive.tensors]
        data = b"".join(part for t in archive.tensors for part in archive.read(t))
    return load(pack_header(described, None) + data)


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
    except NotCertain:
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


def test_a_tensor_that_is_stored_negated_is_refused(tmp_path):
    """torch keeps the mark beside the storage, which holds the other values."""
    complex_numbers = torch.tensor([1 - 1j, 2 - 2j])
    torch.save({"w": complex_numbers.conj().imag}, tmp_path / "m.bin")

    with pytest.raises(NotCertain, match="marks that change its values"):
        TorchArchive(tmp_path / "m.bin")


def pickled(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


def test_nested_keys_do_not_end_the_process(tmp_path):
    content = pickled(b"}", b")", b"\x85" * 300_000, b"K\x01", b"s")

    with pytest.raises(NotCertain, match="no text"):
        TorchArchive(archive(tmp_path / "m.bin", content))


def test_a_pickle_without_an_end_in_sight_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.evidence.files.pickle_tree.OPCODE_LIMIT", 1000)
    content = pickled(b"K\x01" * 2000, b"}")

    with pytest.raises(NotCertain, match="operations"):
        TorchArchive(archive(tmp_path / "m.bin", content))


def repack(path: Path, change) -> Path:
    """Write an archive of torch again, each member as `change` returns it; None leaves it out."""
    new = path.with_name("changed.bin")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(new, "w") as made:
        for name in old.namelist():
            content = change(name, old.read(name))
            if content is not None:
                made.writestr(name, content)
    return new


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as found:
        return {name: found.read(name) for name in found.namelist()}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda name, raw: b"big" if name.endswith("byteorder") else raw, "byte order"),
        (lambda name, raw: raw[:-4] if "/data/" in name else raw, "storage"),
        (lambda name, raw: raw + b"\0\0\0\0" if "/data/" in name else raw, "storage"),
        (lambda name, raw: raw.replace(b"ctorch\n", b"cplain\n"), "unknown kind"),
        (lambda name, raw: raw.replace(b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x00/"), "unknown"),
    ],
)
def test_an_archive_that_differs_from_torchs_in_one_point_is_refused(tmp_path, change, reason):
    torch.save({"w": torch.arange(6.0)}, tmp_path / "m.bin")
    changed = repack(tmp_path / "m.bin", change)
    assert members(changed) != members(tmp_path / "m.bin")

    with pytest.raises(NotCertain, match=reason):
        TorchArchive(changed)


def test_a_shape_of_absurd_length_is_refused_at_once(tmp_path):
    torch.save({"w": torch.zeros(2)}, tmp_path / "m.bin")

    def stretch(name: str, raw: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return raw
        huge = b"(" + b"\x8a\x06\xff\xff\xff\xff\xff\x7f" * 5000 + b"t"
        for sizes in (b"K\x02\x85", b"K\x01\x85"):  # the shape (2,), the strides (1,)
            assert raw.count(sizes) == 1
            raw = raw.replace(sizes, huge)
        return raw

    changed = repack(tmp_path / "m.bin", stretch)
    assert members(changed) != members(tmp_path / "m.bin")
    with pytest.raises(NotCertain, match="5000 dimensions"):
        TorchArchive(changed)


@pytest.mark.parametrize(
    ("added", "reason"),
    [
        (b"(K\x00K\x05u", "no tensor"),  # of the tensor, item 0 becomes 5
        (b"}X\x04\x00\x00\x00dataK\x05sb", "no tensor"),  # an attribute of the tensor
        (b"cposix\nsystem\n0", "calls posix.system"),  # looked up and dropped
    ],
)
def test_what_is_done_beside_the_tensors_is_refused(tmp_path, added, reason):
    torch.save({"w": torch.zeros(2)}, tmp_path / "m.bin")
    changed = repack(
        tmp_path / "m.bin",
        lambda name, raw: raw.replace(b"s.", added + b"s.") if name.endswith("pkl") else raw,
    )
    assert members(changed) != members(tmp_path / "m.bin")

    with pytest.raises(NotCertain, match=reason):
        TorchArchive(changed)


def test_a_parameter_inside_a_parameter_without_end_is_refused(tmp_path):
    """torch wraps a tensor once."""
    call = b"ctorch._utils\n_rebuild_parameter\n"
    content = pickled(b"}", b"X\x01\x00\x00\x00w", call * 100_000, b"N", b"\x85R" * 100_000, b"s")

    with pytest.raises(NotCertain, match="no tensor"):
        TorchArchive(archive(tmp_path / "m.bin", content))
