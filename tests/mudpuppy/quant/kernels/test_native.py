"""The compiled kernel writes the bits of the PyTorch path, whatever the shape, type and memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mudpuppy.quant.formats import FORMATS, FOUR_BITS
from mudpuppy.quant.formats.interface import Packed
from mudpuppy.quant.kernels.cases import count_differing, make_samples
from mudpuppy.quant.kernels.choose import choose
from mudpuppy.quant.kernels.common import FLOATS
from mudpuppy.quant.kernels.native import NativeKernel

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def kernel() -> NativeKernel:
    chosen = choose(CPU)
    if chosen.kernel is None and "no C compiler" in chosen.choice.reason:
        pytest.skip(chosen.choice.reason)
    assert isinstance(chosen.kernel, NativeKernel), chosen.choice.reason
    return chosen.kernel


def write(kernel: NativeKernel, name: str, packed: Packed, out: Tensor, *part: tuple[int, int]):
    assert kernel.takes(FORMATS[name], packed, out)
    rows, columns = part or ((0, out.shape[0]), (0, out.shape[1]))
    kernel.dequantise_into(FORMATS[name], packed, out, rows, columns)
    return out


@given(
    name=st.sampled_from(sorted(FOUR_BITS)),
    rows=st.integers(1, 9),
    columns=st.integers(1, 300),
    block=st.integers(1, 70),
    dtype=st.sampled_from(FLOATS),
    seed=st.integers(0, 2**31),
)
def test_every_shape_has_the_bits_of_pytorch(kernel, name, rows, columns, block, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    form = FORMATS[name]
    qweight = torch.randint(0, 256, (rows, -(-columns // 2)), generator=generator)
    raw = torch.randint(0, 2**31, (rows, -(-columns // block)), generator=generator)
    if form.scale_dtype == torch.uint8:
        scales = (raw % 255).to(torch.uint8)
    else:  # any positive number, subnormal ones too
        scales = (raw % 0x7F7F_0000).to(torch.int32).view(torch.float32).to(form.scale_dtype)
    packed = Packed(qweight.to(torch.uint8), scales, columns, block)

    found = write(kernel, name, packed, torch.empty(rows, columns, dtype=dtype))

    assert count_differing(found, form.dequantise(packed, dtype)) == 0


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", sorted(FOUR_BITS))
def test_a_part_is_written_and_nothing_around_it(kernel, name, dtype):
    form = FORMATS[name]
    packed = form.quantise(torch.randn(40, 331), 32)
    around = torch.full((30, 400), 7.0, dtype=dtype)
    out = around[3:23, 50:150]

    write(kernel, name, packed, out, (11, 31), (64, 164))

    expected = torch.full((30, 400), 7.0, dtype=dtype)
    expected[3:23, 50:150] = form.dequantise(packed, dtype)[11:31, 64:164]
    assert torch.equal(around, expected)


def test_rows_may_lie_apart_and_begin_at_odd_addresses(kernel):
    form = FORMATS["nf4"]
    packed = form.quantise(torch.randn(12, 200), 64)
    wide = torch.zeros(12, 257, dtype=torch.uint8)
    wide[:, 13:113] = packed.qweight
    scales = torch.zeros(12, 9, dtype=packed.scales.dtype)
    scales[:, 3:7] = packed.scales
    moved = packed._replace(qweight=wide[:, 13:113], scales=scales[:, 3:7])
    out = torch.empty(12, 200, dtype=torch.bfloat16)

    write(kernel, "nf4", moved, out)

    assert torch.equal(out, form.dequantise(packed, torch.bfloat16))


def test_several_threads_write_what_one_writes(kernel):
    assert kernel.is_threaded
    form = FORMATS["nf4"]
    packed = form.quantise(torch.randn(700, 512), 64)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        found = write(kernel, "nf4", packed, torch.empty(700, 512, dtype=torch.bfloat16))
    finally:
        torch.set_num_threads(before)

    assert torch.equal(found, form.dequantise(packed, torch.bfloat16))


def test_calls_at_the_same_time_do_not_meet(kernel):
    matrices = [FORMATS["int4"].quantise(torch.randn(64, 256), 64) for _ in range(4)]
    ready = threading.Barrier(4)

    def repeat(packed: Packed) -> bool:
        expected = FORMATS["int4"].dequantise(packed, torch.bfloat16)
        out = torch.empty_like(expected)
        ready.wait()
        return all(torch.equal(write(kernel, "int4", packed, out), expected) for _ in range(20))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(repeat, matrices)) == [True] * 4


def spoil(change: Callable[[Packed, Tensor], tuple[Packed, Tensor]]) -> tuple[Packed, Tensor]:
    return change(FORMATS["nf4"].quantise(torch.randn(8, 64), 64), torch.empty(8, 64))


@pytest.mark.parametrize(
    "change",
    [
        lambda p, out: (p, out.double()),
        lambda p, out: (p, out.t().contiguous().t()),
        lambda p, out: (p, torch.nn.Parameter(out)),
        lambda p, out: (p, out.to("meta")),
        lambda p, out: (p._replace(scales=p.scales.double()), out),
        lambda p, out: (p._replace(scales=p.scales.to(torch.uint8)), out),
        lambda p, out: (p._replace(qweight=p.qweight.to(torch.int32)), out),
        lambda p, out: (p._replace(qweight=p.qweight.repeat(1, 2)[:, ::2]), out),
    ],
)
def test_what_it_cannot_read_is_left_to_pytorch(kernel, change):
    packed, out = spoil(change)

    assert not kernel.takes(FORMATS["nf4"], packed, out)


def test_weights_of_a_byte_are_left_to_pytorch(kernel):
    packed = FORMATS["int8"].quantise(torch.randn(8, 64))

    assert not kernel.takes(FORMATS["int8"], packed, torch.empty(8, 64))


def test_the_cases_hold_what_tells_roundings_apart():
    """Else the self-test would pass kernels that truncate, flush or overflow in their own way."""
    with torch.no_grad():
        values = [(s, s.expected()) for s in make_samples()]
    halves = torch.cat([v.double().flatten() for s, v in values if s.dtype == torch.float16])
    brains = torch.cat([v.double().flatten() for s, v in values if s.dtype == torch.bfloat16])
    singles = torch.cat([v.double().flatten() for s, v in values if s.dtype == torch.float32])

    assert halves.isinf().any()
    assert ((halves != 0) & (halves.abs() < 2.0**-14)).any()
    assert ((brains != 0) & (brains.abs() < 2.0**-126)).any()
    assert ((singles != 0) & (singles.abs() < 2.0**-126)).any()
    assert not singles.isnan().any()


def test_a_library_of_another_source_is_not_opened(tmp_path: Path):
    with pytest.raises(OSError):
        NativeKernel(tmp_path / "nothing.so")
