"""The self-tests: a kernel gives the bits of the PyTorch path on this very device, or is not used.

A fresh C library is first tried in a process of its own: an instruction that this processor lacks
ends that process, and is an outcome here. So is a Triton kernel that takes a GPU's driver down.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from mudpuppy.native.apart import run_apart
from mudpuppy.quant.formats.interface import Packed
from mudpuppy.quant.kernels import trial
from mudpuppy.quant.kernels.cases import Sample, count_differing, make_samples
from mudpuppy.quant.kernels.common import Kernel
from mudpuppy.quant.kernels.triton_kernel import TritonKernel

TRIAL_LIMIT_S = 60
"""Time that a library has for its cases; it needs a tenth of a second."""
DEVICE_LIMIT_S = 600
"""Time that a GPU has; Triton compiles some dozen kernels, and torch may be on a cold disk."""
TOKENS = (40, 20, 3)
"""Tokens of the products that are compared: one for each size of tile."""


def find_wrong_rows(
    kernel: Kernel, device: torch.device, *, extremes: bool = True
) -> tuple[int, str]:
    """Let a kernel write the cases in this process.

    Returns:
        The number of cases, and what differs; empty where nothing does.
    """
    number = 0
    for number, sample in enumerate(make_samples(extremes=extremes), start=1):
        expected = sample.expected()
        packed = _moved(sample.packed, device)
        out = torch.full_like(expected, torch.nan, device=device)
        kernel.dequantise_into(sample.form, packed, out, (0, out.shape[0]), (0, out.shape[1]))
        if wrong := count_differing(out.cpu(), expected):
            return number, f"{wrong} values of {sample} differ from PyTorch's"
    return number, ""


def judge_library(library: Path) -> tuple[bool, str]:
    """Try a fresh library in a process of its own, and compare bit by bit.

    Returns:
        Whether it may be used, and what was tested or what is wrong.

    Raises:
        KernelUnavailable: it could not be tried, which says nothing about the library.
    """
    samples = list(make_samples())
    cases = json.dumps([_case(sample, number % 17) for number, sample in enumerate(samples)])
    command = [sys.executable, "-I", "-S", str(trial.__file__), str(library)]
    failure, answer = run_apart(command, cases, TRIAL_LIMIT_S)
    if failure:
        return False, failure
    for sample, text in zip(samples, json.loads(answer), strict=True):
        # behind every row is a column of zeros that must stay
        expected = torch.nn.functional.pad(sample.expected(), (0, 1))
        found = torch.frombuffer(bytearray(base64.b64decode(text)), dtype=sample.dtype)
        if wrong := count_differing(found.view(expected.shape), expected):
            return False, f"{wrong} values of {sample} differ from PyTorch's"
    return True, f"{len(samples)} matrices have the bits of the PyTorch path"


def judge_device(device: torch.device) -> tuple[bool, str]:
    """Try the Triton kernels on a device in a process of its own; returns and raises as above."""
    command = [sys.executable, "-m", "mudpuppy.quant.kernels.selftest", str(device)]
    failure, answer = run_apart(command, "", DEVICE_LIMIT_S)
    if failure:
        return False, failure
    passed, why = json.loads(answer.rpartition("\n")[2])
    return bool(passed), str(why)


def judge_triton(device: torch.device) -> tuple[bool, str]:
    """Compare the Triton kernels on a device with PyTorch: rows by their bits, products by value.

    Subnormal numbers are left out: some GPUs flush them to zero, and no weight of a model is one.
    """
    kernel = TritonKernel()
    count, wrong = find_wrong_rows(kernel, device, extremes=False)
    for sample, tokens in _pick_products():
        wrong = wrong or _find_wrong_product(kernel, sample, tokens, device)
    if wrong:
        return False, wrong
    return True, f"{count} matrices have the bits of the PyTorch path, and their products agree"


def _pick_products() -> Iterator[tuple[Sample, int]]:
    """Yield the matrices whose products are compared: each further one is seconds of compiling."""
    for sample in make_samples(extremes=False):
        if sample.packed.in_features == 96:
            yield sample, TOKENS[0]
        if (sample.form.name, sample.dtype) != ("nf4", torch.bfloat16):
            continue
        if sample.packed.in_features == 96:
            yield from ((sample, tokens) for tokens in TOKENS[1:])
        if sample.packed.block_size == 7:
            yield sample, TOKENS[0]


def _find_wrong_product(
    kernel: TritonKernel, sample: Sample, tokens: int, device: torch.device
) -> str:
    """Say what is wrong with the two products of a matrix; empty where nothing is."""
    form, packed, dtype = sample
    weight = sample.expected()
    moved = _moved(packed, device)
    generator = torch.Generator().manual_seed(1)
    for turned in (False, True):
        matrix = weight if turned else weight.t()
        # a product with 1 is the weight itself
        one = torch.eye(matrix.shape[0], dtype=dtype)[:tokens]
        x = torch.randn(tokens, matrix.shape[0], generator=generator).to(dtype)
        copy, y = (
            torch.empty(len(left), matrix.shape[1], dtype=dtype, device=device) for left in (one, x)
        )
        for left, result in ((one, copy), (x, y)):
            if turned:
                kernel.multiply_turned(form, moved, left.to(device), result, dtype)
            else:
                kernel.multiply(form, moved, left.to(device), None, result, dtype)
        if not torch.equal(copy.cpu(), matrix[: len(one)]):
            return f"the weight in a product with {sample} is another"
        exact = x.double() @ matrix.double()
        size = x.double().abs() @ matrix.double().abs()
        bound = exact.abs() * torch.finfo(dtype).eps + size * matrix.shape[0] * 2.0**-23 + 1e-30
        if bool(((y.cpu().double() - exact).abs() > bound).any()):
            return f"a product with {sample} is wrong"
    return ""


def _moved(packed: Packed, device: torch.device) -> Packed:
    return packed._replace(qweight=packed.qweight.to(device), scales=packed.scales.to(device))


def _case(sample: Sample, shift: int) -> trial.Case:
    qweight, scales, columns, block = sample.packed
    return {
        "qweight": _base64(qweight),
        "scales": _base64(scales),
        "levels": list(sample.form.levels),
        "rows": qweight.shape[0],
        "columns": columns,
        "block": block,
        "scale_kind": str(scales.dtype).removeprefix("torch."),
        "out_kind": str(sample.dtype).removeprefix("torch."),
        "shift": shift,
    }


def _base64(tensor: Tensor) -> str:
    data = tensor.contiguous().view(torch.uint8).flatten()
    return base64.b64encode(bytes(data.tolist())).decode()


if __name__ == "__main__":
    json.dump(judge_triton(torch.device(sys.argv[1])), sys.stdout)
