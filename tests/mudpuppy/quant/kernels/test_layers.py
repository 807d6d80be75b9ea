"""A 4-bit layer computes the same with the kernel and without: products, weight, graphs, runs."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from mudpuppy.config_check import load_config
from mudpuppy.engine import train
from mudpuppy.quant import product
from mudpuppy.quant.formats import FORMATS, FOUR_BITS
from mudpuppy.quant.kernels import choose as chooser
from mudpuppy.quant.kernels.native import NativeKernel
from mudpuppy.quant.kernels.triton_kernel import TritonKernel
from mudpuppy.quant.linear4bit import Linear4bit
from mudpuppy.tiny import resolve_model

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="there is no C compiler"
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The formats that the C kernel wrote."""
    chooser.choose(CPU)  # its self-test writes, too
    made: list[str] = []
    write = NativeKernel.dequantise_into

    def counted(self, form, *rest):
        made.append(form.name)
        write(self, form, *rest)

    monkeypatch.setattr(NativeKernel, "dequantise_into", counted)
    return made


def make_layer(name: str, dtype: torch.dtype, rows: int = 70, columns: int = 130) -> Linear4bit:
    generator = torch.Generator().manual_seed(0)
    dense = torch.nn.Linear(columns, rows, dtype=dtype)
    dense.weight.data.copy_(torch.randn(rows, columns, generator=generator))
    dense.bias.data.zero_()
    return Linear4bit.from_linear(dense, FORMATS[name])


def step(layer, x):
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(torch.ones_like(y))
    return y.detach(), x.grad


@pytest.mark.parametrize("is_whole", [True, False], ids=["whole", "tiles"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", sorted(FOUR_BITS))
def test_both_passes_have_the_same_bits(calls, monkeypatch, name, dtype, is_whole):
    if not is_whole:
        monkeypatch.setattr(product, "WHOLE_BYTES", 0)
        monkeypatch.setattr(product, "TILE_BYTES", 0)
        monkeypatch.setattr(product, "MIN_TILE", 16)
    layer = make_layer(name, dtype)
    x = torch.randn(3, 5, 130).to(dtype)
    found = step(layer, x)
    number = len(calls)
    with chooser.allowing(False):
        expected = step(layer, x)

    assert set(calls) == {name}
    assert number >= (2 if is_whole else 5)
    assert len(calls) == number
    assert all(map(torch.equal, found, expected))


def test_the_weight_that_is_handed_out_is_the_same(calls):
    layer = make_layer("nf4", torch.bfloat16)
    found = layer.to_linear().weight
    assert calls
    with chooser.allowing(False):
        assert torch.equal(found, layer.to_linear().weight)


def test_a_compiled_graph_is_whole_and_uses_the_kernel(calls):
    """`fullgraph` raises where the graph would break, as it does at a call by ctypes."""
    layer = make_layer("nf4", torch.float32)
    x = torch.randn(6, 130)
    expected = step(layer, x)
    calls.clear()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)

    found = step(compiled, x)

    assert set(calls) == {"nf4"}
    assert all(map(torch.equal, found, expected))


def test_an_export_traces_the_weight_without_the_kernel(calls):
    layer = make_layer("nf4", torch.float32)
    program = torch.export.export(torch.nn.Sequential(layer), (torch.randn(2, 130),))

    assert calls == []
    x = torch.randn(2, 130)
    assert torch.equal(program.module()(x), layer(x))


def test_the_fused_product_is_asked_for_few_tokens_on_a_gpu(monkeypatch):
    """On a processor none is; here the question is answered as on a GPU."""
    layer = make_layer("int4", torch.float32)
    asked = []

    class Recorder(TritonKernel):
        def __init__(self):
            pass

        def multiply(self, form, packed, x, bias, y, dtype):
            asked.append(("forward", tuple(x.shape), dtype))
            torch.mm(x, form.dequantise(packed).t(), out=y)

        def multiply_turned(self, form, packed, x, y, dtype):
            asked.append(("backward", tuple(x.shape), dtype))
            torch.mm(x, form.dequantise(packed), out=y)

    monkeypatch.setattr(product, "find_fused", lambda *_: Recorder())
    found = step(layer, torch.ones(2, 3, 130))

    monkeypatch.undo()
    expected = step(layer, torch.ones(2, 3, 130))
    assert asked == [("forward", (6, 130), torch.float32), ("backward", (6, 70), torch.float32)]
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


def test_a_run_learns_the_same_with_and_without_and_records_which(tmp_path, calls):
    data = tmp_path / "chat.jsonl"
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "an answer"}]
    data.write_text(json.dumps({"messages": turns}))
    settings = {
        "model": resolve_model("tiny:llama"),
        "dataset": data,
        "method": "qlora",
        "precision": "bf16",
        "max_steps": 1,
        "batch_size": 1,
        "lora_r": 4,
    }
    weights, chosen = {}, {}
    try:
        for kernels in ("auto", "off"):
            output = tmp_path / kernels
            record = train(load_config({**settings, "output": output, "kernels": kernels}))
            chosen[kernels] = record.choices["kernels"]
            weights[kernels] = load_file(output / "adapter_model.safetensors")
            assert json.loads((output / "run.json").read_text())["choices"]["kernels"]
            assert bool(calls) == (kernels == "auto")
            calls.clear()
    finally:
        chooser.allow(True)

    assert chosen["auto"].value == "compiled C"
    assert (chosen["off"].value, chosen["off"].reason) == ("PyTorch", "--kernels off")
    assert weights["auto"].keys() == weights["off"].keys()
    assert all(torch.equal(weights["off"][name], one) for name, one in weights["auto"].items())
