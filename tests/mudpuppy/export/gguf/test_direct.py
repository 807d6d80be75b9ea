import errno
import os
import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mudpuppy.export.gguf import direct
from mudpuppy.export.gguf.direct import DirectFile


@pytest.fixture
def target(tmp_path, monkeypatch):
    monkeypatch.setattr(direct, "BUFFER_BYTES", 2 * direct.PAGE)
    path = tmp_path / "file"
    path.write_bytes(b"what was there before, and more" * 10_000)
    return path


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(sizes=st.lists(st.integers(0, 20_000), max_size=6))
def test_the_file_holds_what_was_written_and_no_more(target: Path, sizes):
    pieces = [os.urandom(size) for size in sizes]
    with DirectFile(target) as handle:
        for number, piece in enumerate(pieces):
            assert handle.tell() == sum(sizes[:number])
            handle.write(piece)

    assert target.read_bytes() == b"".join(pieces)


def test_arrays_of_any_type_are_written_as_their_bytes(target: Path):
    arrays = [np.arange(6, dtype=kind).reshape(2, 3) for kind in ("f4", "f2", "u2", "u1")]
    with DirectFile(target) as handle:
        for array in (*arrays, np.empty((0, 8), np.uint8)):
            handle.write(array)

    assert target.read_bytes() == b"".join(array.tobytes() for array in arrays)


@pytest.mark.parametrize("where", ["open", "write"])
def test_a_file_system_without_direct_writes_is_written_to_as_usual(target, monkeypatch, where):
    calls = []
    real_open, real_write = os.open, os.write

    def refuse_open(path, flags, *rest):
        if where == "open" and flags & direct.DIRECT:
            raise OSError(errno.EINVAL, "no such flag")
        return real_open(path, flags, *rest)

    def refuse_write(descriptor, data):
        calls.append(len(data))
        if where == "write" and len(calls) == 1:
            raise OSError(errno.EINVAL, "another alignment")
        return real_write(descriptor, data)

    monkeypatch.setattr(os, "open", refuse_open)
    monkeypatch.setattr(os, "write", refuse_write)
    with DirectFile(target) as handle:
        handle.write(b"x" * 50_000)

    assert target.read_bytes() == b"x" * 50_000
    assert calls


def test_short_writes_go_on(target, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data[: direct.PAGE]))
    content = os.urandom(40_000)
    with DirectFile(target) as handle:
        handle.write(content)

    assert target.read_bytes() == content


def test_a_limit_is_an_error_and_closes_the_file(target):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    open_files = sum(1 for _ in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        with pytest.raises(OSError, match="large"), DirectFile(target) as handle:
            handle.write(b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == open_files


def test_an_error_inside_is_not_hidden(target):
    with pytest.raises(ZeroDivisionError), DirectFile(target) as handle:
        handle.write(bytes(1 // handle.tell()))
