"""What the machine refuses is said in our words, and nothing else is taken for it."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mudpuppy.errors import EngineError
from mudpuppy.refusals import is_out_of_memory, telling_of_failed_writes, telling_of_memory


def test_torch_really_says_what_is_looked_for():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)

    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (MemoryError(), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space"), False),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("DefaultCPUAllocator: can't allocate memory"), False),
    ],
)
def test_memory_is_told_from_everything_else(error: Exception, is_memory: bool):
    def fail() -> None:
        with telling_of_memory("lora", "lower it"):
            raise error

    with pytest.raises(EngineError if is_memory else type(error)) as caught:
        fail()
    if is_memory:
        assert str(caught.value).startswith("lora ran out of memory")


@pytest.mark.parametrize(("free", "said"), [(0, "No space left"), (1 << 30, "not be written")])
def test_a_file_that_torch_could_not_finish_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, said: str
):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))

    def fail() -> None:
        with telling_of_failed_writes(tmp_path):
            torch.save({"x": torch.zeros(9)}, "/dev/full")

    with pytest.raises(EngineError, match=said):
        fail()


def test_other_errors_pass_as_they_are(tmp_path: Path):
    def fail() -> None:
        with telling_of_failed_writes(tmp_path):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        fail()
