"""Headers of safetensors files: the same as the library reads, and nothing hostile gets through."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from mudpuppy.safefile import checkpoint_tensors, pack_header, read_header, same_bytes, weight_files

TENSORS = {
    "b": torch.arange(12, dtype=torch.bfloat16).view(3, 4),
    "a": torch.arange(5, dtype=torch.int64),
    "scalar": torch.tensor(1.5),
    "empty": torch.ones(0, 4),
}


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def test_a_header_says_what_the_library_says(tmp_path: Path):
    save_file(TENSORS, tmp_path / "x.safetensors", {"format": "pt"})

    found = read_header(tmp_path / "x.safetensors")

    assert found.keys() == TENSORS.keys()
    raw = (tmp_path / "x.safetensors").read_bytes()
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        for name, entry in found.items():
            tensor = file.get_tensor(name)
            assert entry.shape == tuple(tensor.shape)
            assert raw[entry.start : entry.start + entry.size] == bytes(
                tensor.contiguous().view(-1).view(torch.uint8).numpy()
            )


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"said": "ünïcode \U0001f43e"}])
def test_a_header_that_is_packed_here_is_read_by_the_library(tmp_path: Path, metadata: Any):
    tensors = TENSORS | {"wörter": torch.arange(3.0)}
    types = {torch.bfloat16: "BF16", torch.int64: "I64", torch.float32: "F32"}
    described = [(n, types[t.dtype], tuple(t.shape), t.nbytes) for n, t in tensors.items()]
    data = b"".join(bytes(t.contiguous().view(-1).view(torch.uint8)) for t in tensors.values())
    packed = pack_header(described, metadata)
    (tmp_path / "x.safetensors").write_bytes(packed + data)

    assert len(packed) % 8 == 0
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == metadata
        assert set(file.keys()) == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(file.get_tensor(name), tensor)
    assert list(read_header(tmp_path / "x.safetensors")) == list(tensors)


def entry(**changes: Any) -> dict[str, Any]:
    return {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


@pytest.mark.parametrize(
    "header",
    [
        entry(data_offsets=[0, 16]),
        entry(data_offsets=[4, 12]),
        entry(data_offsets=[-8, 0]),
        entry(data_offsets=[8, 0]),
        entry(data_offsets=[0]),
        entry(data_offsets=[0.0, 8.0]),
        entry(shape=[3]),
        entry(shape=[-2]),
        entry(shape=[True, 2]),
        entry(shape="22"),
        entry(shape=None),
        {"x": []},
        {"x": {}},
        [],
        b"{",
        b"[" * 100_000,
        entry() | {"y": entry()["x"]},
    ],
    ids=str,
)
def test_a_header_that_contradicts_itself_is_refused(header: Any, tmp_path: Path):
    path = write(tmp_path / "x.safetensors", header, bytes(8))

    with pytest.raises(ValueError, match=r"x.safetensors"):
        read_header(path)


@pytest.mark.parametrize("raw", [b"", b"\1", bytes(8), b"\xff" * 8 + b"{}", b"\x02" + bytes(7)])
def test_what_is_no_safetensors_file_is_refused(raw: bytes, tmp_path: Path):
    (tmp_path / "x.safetensors").write_bytes(raw)

    with pytest.raises(ValueError, match="not a safetensors file"):
        read_header(tmp_path / "x.safetensors")


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_else(raw: bytes):
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(raw)
        file.flush()
        try:
            read_header(Path(file.name))
        except ValueError as error:
            assert file.name in str(error)  # noqa: PT017


def test_index_and_files_must_agree(tmp_path: Path):
    save_file({"a": torch.ones(2)}, tmp_path / "1.safetensors")
    save_file({"b": torch.ones(2)}, tmp_path / "2.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    assert ["a", "b"] == list(checkpoint_tensors(tmp_path))
    assert ["1.safetensors", "2.safetensors"] == [path.name for path in weight_files(tmp_path)]

    index.write_text(json.dumps({"weight_map": {"a": "2.safetensors", "b": "1.safetensors"}}))
    with pytest.raises(ValueError, match=r"the tensor a is not in 2.safetensors"):
        checkpoint_tensors(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "../b"}}))
    with pytest.raises(ValueError, match="leaves the folder"):
        checkpoint_tensors(tmp_path)
    index.write_text(json.dumps({"weight_map": ["a"]}))
    with pytest.raises(ValueError, match="damaged"):
        checkpoint_tensors(tmp_path)
    save_file({"a": torch.ones(2)}, tmp_path / "2.safetensors")
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    with pytest.raises(ValueError, match="in two files"):
        checkpoint_tensors(tmp_path)


def test_equal_tensors_are_told_from_others(tmp_path: Path):
    save_file(
        {"a": torch.ones(9), "b": torch.ones(9), "c": torch.ones(3, 3), "d": torch.zeros(9)},
        tmp_path / "x.safetensors",
    )
    a, b, c, d = read_header(tmp_path / "x.safetensors").values()

    assert same_bytes(a, b, block=4)
    assert not same_bytes(a, c)
    assert not same_bytes(a, d, block=4)
