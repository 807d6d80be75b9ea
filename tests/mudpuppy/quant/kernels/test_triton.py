"""The Triton kernels, computed on the processor by Triton's interpreter (`make test-triton`)."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mudpuppy.quant.formats import FORMATS, FOUR_BITS
from mudpuppy.quant.kernels import choose as chooser
from mudpuppy.quant.kernels import selftest, triton_kernel
from mudpuppy.quant.kernels.common import FLOATS
from mudpuppy.quant.kernels.selftest import judge_triton
from mudpuppy.quant.kernels.triton_kernel import MAX_FUSED_TOKENS, TritonKernel

CPU = torch.device("cpu")
has_triton = importlib.util.find_spec("triton") is not None
pytestmark = pytest.mark.skipif(
    not (has_triton and os.environ.get("TRITON_INTERPRET") == "1"),
    reason="needs triton and TRITON_INTERPRET=1: make test-triton",
)


@pytest.fixture(scope="module")
def kernel() -> TritonKernel:
    return TritonKernel()


def test_the_self_test_passes_for_every_format_and_type():
    passed, why = judge_triton(CPU)

    assert passed, why


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", sorted(FOUR_BITS))
@pytest.mark.parametrize(("tokens", "rows", "columns"), [(1, 33, 64), (37, 70, 131), (70, 20, 96)])
def test_products_agree_with_float64(kernel, name, dtype, tokens, rows, columns):
    form = FORMATS[name]
    packed = form.quantise(torch.randn(rows, columns))
    weight = form.dequantise(packed, dtype).double()
    bias = torch.randn(rows).to(dtype)
    x, g = torch.randn(tokens, columns).to(dtype), torch.randn(tokens, rows).to(dtype)
    y, back = torch.empty(tokens, rows, dtype=dtype), torch.empty(tokens, columns, dtype=dtype)

    kernel.multiply(form, packed, x, bias, y, dtype)
    kernel.multiply_turned(form, packed, g, back, dtype)

    tolerance = 4 * torch.finfo(dtype).eps * columns**0.5
    torch.testing.assert_close(
        y.double(), x.double() @ weight.t() + bias.double(), rtol=tolerance, atol=tolerance
    )
    torch.testing.assert_close(back.double(), g.double() @ weight, rtol=tolerance, atol=tolerance)


def test_the_weight_is_rounded_to_the_layers_type_first(kernel):
    """A merge folds into the rounded weight, so a product in fp32 must use the same."""
    form = FORMATS["int4"]
    packed = form.quantise(torch.randn(16, 64))
    out = torch.empty(64, 16)

    kernel.multiply(form, packed, torch.eye(64), None, out, torch.bfloat16)

    assert torch.equal(out.t(), form.dequantise(packed, torch.bfloat16).float())


def test_a_part_is_written_and_nothing_around_it(kernel):
    form = FORMATS["nf4"]
    packed = form.quantise(torch.randn(40, 331), 32)
    around = torch.full((30, 400), 7.0)

    kernel.dequantise_into(form, packed, around[3:23, 50:150], (11, 31), (64, 164))

    expected = torch.full((30, 400), 7.0)
    expected[3:23, 50:150] = form.dequantise(packed)[11:31, 64:164]
    assert torch.equal(around, expected)


def test_x_may_lie_apart_and_nothing_is_written_past_y(kernel):
    form = FORMATS["nf4"]
    packed = form.quantise(torch.randn(40, 65))
    x = torch.randn(5, 100)[:, 20:85]
    around = torch.full((9, 60), 7.0)

    kernel.multiply(form, packed, x, None, around[2:7, 10:50], torch.float32)

    expected = x @ form.dequantise(packed).t()
    torch.testing.assert_close(around[2:7, 10:50], expected, rtol=1e-5, atol=1e-5)
    around[2:7, 10:50] = 7.0
    assert torch.equal(around, torch.full((9, 60), 7.0))


def test_few_tokens_are_fused_and_many_are_not(kernel):
    form = FORMATS["nf4"]
    packed = form.quantise(torch.randn(8, 64))

    assert kernel.multiplies(form, packed, torch.randn(MAX_FUSED_TOKENS, 64))
    assert not kernel.multiplies(form, packed, torch.randn(MAX_FUSED_TOKENS + 1, 64))
    assert not kernel.multiplies(form, packed, torch.randn(0, 64))
    assert not kernel.multiplies(form, packed, torch.randn(4, 64).double())
    assert chooser.find_fused(form, packed, torch.randn(4, 64)) is None  # on a processor


@pytest.mark.parametrize("name", ["dequantise_rows", "multiply", "multiply_turned"])
def test_a_kernel_that_computes_something_else_is_refused(monkeypatch, name):
    """The levels of the neighbour: what a GPU with a broken look-up would do."""
    right = TritonKernel._levels_of

    def rotated(self, form, device):
        return right(self, form, device).roll(1)

    class Wrong(TritonKernel):
        pass

    def spoiled(self, *args):
        self._levels_of = rotated.__get__(self)
        try:
            getattr(TritonKernel, method)(self, *args)
        finally:
            del self._levels_of

    method = "dequantise_into" if name == "dequantise_rows" else name
    setattr(Wrong, method, spoiled)
    monkeypatch.setattr(selftest, "TritonKernel", Wrong)

    passed, why = judge_triton(CPU)

    assert not passed
    assert "differ" in why if name == "dequantise_rows" else "product" in why


def test_the_self_test_runs_in_a_process_of_its_own():
    passed, why = selftest.judge_device(CPU)

    assert passed, why
    assert "products agree" in why


def test_one_source_compiles_for_amd_and_nvidia(tmp_path: Path):
    """To machine code, by Triton's own compiler, without the GPUs."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("ahead.py"))],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 15
    for line in lines:
        assert line.endswith("hsaco" if line.startswith("hip") else "cubin")


def test_tiles_are_as_small_as_the_tokens():
    assert [triton_kernel._token_tile(n) for n in (1, 16, 17, 32, 33, 128)] == [
        *(16, 16, 32, 32, 64, 64)
    ]
