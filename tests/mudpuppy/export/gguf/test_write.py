import os
import resource
import signal
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mudpuppy.errors import EngineError, OutputError
from mudpuppy.export.gguf import blocks
from mudpuppy.export.gguf.refusals import ExportRefused
from mudpuppy.export.gguf.tensors import Part, Plan, Planned
from mudpuppy.export.gguf.write import _bytes, write_gguf
from mudpuppy.interruption import Terminated, raising_when_terminated
from mudpuppy.safefile import read_header
from tests.mudpuppy.export.gguf.reading import read_metadata, read_tensors


class Half:
    """Makes F16, and can be told to do something at its second block."""

    name = "test"

    def __init__(self, second: Any = lambda: None) -> None:
        self.calls, self.second = 0, second

    def quantise(self, rows: np.ndarray, kind: str) -> np.ndarray:
        assert kind == "F16"
        self.calls += 1
        if self.calls == 2:
            self.second()
        with np.errstate(over="ignore"):
            return blocks.widen(rows).astype(np.float16)


def plan_of(folder: Path, **tensors: torch.Tensor) -> Plan:
    path = folder / "model.safetensors"
    save_file(tensors, path)
    planned = [
        Planned(
            name=f"{name}.weight",
            shape=entry.shape,
            parts=(Part(entry, 0, int(np.prod(entry.shape[:-1]))),),
        )
        for name, entry in read_header(path).items()
    ]
    return Plan(
        architecture="llama",
        tensors=tuple(planned),
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        num_rows=1,
    )


def write(plan: Plan, output: Path, kind: str = "F16", quantiser: Half | None = None) -> int:
    types = {one.name: kind for one in plan.tensors}
    return write_gguf(
        output, plan, types, lambda writer: writer.add_name("pond"), quantiser or Half()
    )


def test_the_gguf_package_reads_what_was_written(tmp_path: Path):
    made = {"a": torch.randn(5, 64), "b": torch.randn(3, 2, 32), "c": torch.randn(7)}

    size = write(plan_of(tmp_path, **made), tmp_path / "out.gguf")

    found = read_tensors(tmp_path / "out.gguf")
    assert size == (tmp_path / "out.gguf").stat().st_size
    assert read_metadata(tmp_path / "out.gguf")["general.name"][1] == "pond"
    assert {name.removesuffix(".weight"): value for name, value in found.items()} == {
        name: ("F16", tuple(reversed(value.shape)), value.half().numpy().tobytes())
        for name, value in made.items()
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_memory_is_a_few_blocks_and_not_a_tensor(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1 << 20)
    plan = plan_of(tmp_path, **{f"w{n}": torch.ones(4096, 1024, dtype=dtype) for n in range(3)})

    tracemalloc.start()
    try:
        write(plan, tmp_path / "out.gguf")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert (tmp_path / "out.gguf").stat().st_size > 3 * 2 * 4096 * 1024
    assert peak < 6 << 20  # a tensor as fp32 is 16 MB


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_half_way_is_told_and_leaves_nothing(tmp_path: Path):
    plan = plan_of(tmp_path, a=torch.ones(300, 1000), b=torch.ones(300, 1000))
    output = tmp_path / "out" / "out.gguf"
    output.parent.mkdir()
    output.write_bytes(b"GGUF as it was")

    with files_up_to(700_000), pytest.raises(EngineError, match="cannot go on") as caught:
        write(plan, output)

    assert "df" in caught.value.hint
    assert [output] == list(output.parent.iterdir())
    assert output.read_bytes() == b"GGUF as it was"


def test_a_disk_that_is_full_already_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plan = plan_of(tmp_path, a=torch.ones(300, 1000))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 599_999}))

    with pytest.raises(OutputError, match="free there"):
        write(plan, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_a_termination_leaves_nothing(tmp_path: Path):
    plan = plan_of(tmp_path, a=torch.ones(3, 10), b=torch.ones(3, 10))
    output = tmp_path / "out" / "out.gguf"
    output.parent.mkdir()
    kill = Half(lambda: os.kill(os.getpid(), signal.SIGTERM))

    with raising_when_terminated(), pytest.raises(Terminated):
        write(plan, output, quantiser=kill)

    assert kill.calls == 2
    assert [] == list(output.parent.iterdir())


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path: Path):
    plan = plan_of(tmp_path, a=torch.ones(3, 10))
    rest = tmp_path / ".out.gguf.abcdefgh.tmp"
    rest.write_bytes(b"GGUF")
    other = tmp_path / ".other.gguf.abcdefgh.tmp"
    other.write_bytes(b"GGUF")

    write(plan, tmp_path / "out.gguf")

    assert not rest.exists()
    assert other.exists()


def test_a_value_that_f16_does_not_have_is_refused(tmp_path: Path):
    plan = plan_of(tmp_path, a=torch.full((3, 10), 70_000.0))

    with pytest.raises(ExportRefused, match=r"a\.weight holds values beyond 65504") as caught:
        write(plan, tmp_path / "out.gguf")

    assert caught.value.hint == "--quant bf16"
    assert not (tmp_path / "out.gguf").exists()


def test_an_error_of_the_quantiser_names_the_tensor(tmp_path: Path):
    def fail() -> None:
        raise EngineError("too large")

    plan = plan_of(tmp_path, a=torch.ones(3, 10), b=torch.ones(3, 10))

    with pytest.raises(EngineError, match=r"the tensor b\.weight: too large"):
        write(plan, tmp_path / "out.gguf", quantiser=Half(fail))


@pytest.mark.parametrize(("count", "said"), [(600_000, "0.60 MB"), (2 * 10**9, "2.00 GB")])
def test_a_small_size_is_not_told_as_nothing(count: int, said: str):
    assert _bytes(count) == said
