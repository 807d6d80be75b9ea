"""A packed layer computes what a linear layer with the dequantised weight would."""

import copy
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from mudpuppy.errors import EngineError
from mudpuppy.quant.formats import FORMATS, Format
from mudpuppy.quant.linear4bit import (
    LINEARS,
    Linear4bit,
    replace_linears,
    restore_linears,
)
from tests.mudpuppy.quant.tiny_llama import make_ids, make_llama

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INT4, NF4 = FORMATS["int4"], FORMATS["nf4"]
every_format = pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)


def make_pair(
    form: Format = NF4,
    *,
    dtype: torch.dtype = torch.float32,
    bias: bool = True,
    columns: int = 70,
) -> tuple[Linear4bit, nn.Linear]:
    """A packed layer, and a plain one that holds its dequantised weight."""
    torch.manual_seed(0)
    source = nn.Linear(columns, 24, bias=bias).to(dtype)
    packed = Linear4bit.from_linear(source, form, block_size=32)
    plain = nn.Linear(columns, 24, bias=bias).to(dtype)
    plain.requires_grad_(False)
    plain.weight.copy_(form.dequantise(form.quantise(source.weight, 32), dtype))
    if bias:
        plain.bias.copy_(source.bias.detach())
    return packed, plain


def run(layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output and the gradient of a weighted sum of it with respect to `x`."""
    x = x.clone().requires_grad_(True)
    y = layer(x)
    generator = torch.Generator().manual_seed(3)
    (y.float() * torch.randn(y.shape, generator=generator)).sum().backward()
    return y.detach(), x.grad


@every_format
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 70), (2, 3, 70)])
def test_output_and_gradient_equal_those_of_a_plain_layer(form, dtype, bias, shape):
    packed, plain = make_pair(form, dtype=dtype, bias=bias)
    assert type(packed) is LINEARS[form.name]
    x = torch.randn(shape).to(dtype)
    for got, expected in zip(run(packed, x), run(plain, x), strict=True):
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)


def test_a_trained_bias_has_its_gradient_for_inputs_of_any_shape():
    for shape in [(70,), (0, 70), (5, 70), (2, 3, 70)]:
        packed, plain = make_pair()
        x = torch.randn(shape)
        for layer in (packed, plain):
            layer.bias.requires_grad_(True)
            run(layer, x)
        assert torch.equal(packed.bias.grad, plain.bias.grad), shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_what_it_gives_a_plain_layer(dtype):
    packed, plain = make_pair()
    x = torch.randn(4, 6, 70)
    with torch.autocast("cpu", dtype=dtype):
        got, expected = packed(x), plain(x)
    assert got.dtype == dtype
    assert torch.equal(got, expected)
    with torch.autocast("cpu", dtype=dtype):
        inside = run(packed, x)[1], run(plain, x)[1]
    assert torch.equal(*inside)


def test_checkpointing_changes_neither_output_nor_gradient():
    packed, plain = make_pair()
    x = torch.randn(4, 70)
    wrapped = nn.Module()
    wrapped.forward = lambda x: checkpoint(packed, x, use_reentrant=False)
    for got, expected in zip(run(wrapped, x), run(plain, x), strict=True):
        assert torch.equal(got, expected)


def test_a_trained_bias_gets_the_gradient_of_a_plain_layer():
    packed, plain = make_pair()
    x = torch.randn(2, 5, 70)
    for layer in (packed, plain):
        layer.bias.requires_grad_(True)
        run(layer, x)
    assert torch.allclose(packed.bias.grad, plain.bias.grad, rtol=1e-6, atol=1e-6)


def test_no_dense_weight_is_kept_between_forward_and_backward():
    packed = Linear4bit.from_linear(nn.Linear(512, 256, bias=False), NF4)
    saved: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.numel() * tensor.element_size())
        return tensor

    x = torch.randn(2, 512, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        packed(x)
    assert sum(saved) == 512 * 256 // 2 + 256 * 8 * 2


def test_the_weight_looks_like_a_frozen_linear_weight():
    packed, plain = make_pair(dtype=torch.bfloat16)
    assert isinstance(packed, nn.Linear)
    assert isinstance(packed.weight, torch.Tensor)
    assert packed.weight.shape == (24, 70)
    assert packed.weight.dtype == torch.bfloat16
    assert packed.weight.device.type == "cpu"
    assert not packed.weight.requires_grad
    assert torch.equal(packed.weight, plain.weight)
    assert [name for name, _ in packed.named_parameters()] == ["bias"]


def write_by_iadd(layer, delta):
    layer.weight.data += delta


def write_by_assignment(layer, delta):
    layer.weight.data = layer.weight + delta


def write_by_method(layer, delta):
    layer.weight.data.add_(delta)


def write_without_data(layer, delta):
    with torch.no_grad():
        layer.weight.add_(delta)


def write_by_index(layer, delta):
    layer.weight.data[:] = layer.weight + delta


def write_by_out(layer, delta):
    weight = layer.weight
    torch.add(weight, delta, out=weight)


def write_in_a_list(layer, delta):
    torch._foreach_add_([layer.weight], [delta])


def write_in_a_list_of_data(layer, delta):
    weight = layer.weight
    torch._foreach_copy_((weight.data,), (weight + delta,))


def write_a_parameter(layer, delta):
    layer.weight = nn.Parameter(layer.weight + delta, requires_grad=False)


@pytest.mark.parametrize(
    "write",
    [
        write_by_iadd,
        write_by_assignment,
        write_by_method,
        write_without_data,
        write_by_index,
        write_by_out,
        write_in_a_list,
        write_in_a_list_of_data,
        write_a_parameter,
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_a_write_to_the_weight_reaches_the_layer(write, inference):
    packed, plain = make_pair()
    delta = torch.randn(24, 70)
    with torch.inference_mode(inference):
        write(packed, delta)
    assert not packed.is_packed
    assert torch.equal(packed.weight, plain.weight + delta)
    assert sorted(packed.state_dict()) == ["bias", "weight"]
    assert torch.equal(packed(torch.eye(70)), F.linear(torch.eye(70), packed.weight, plain.bias))


def test_reading_the_weight_leaves_the_layer_packed():
    packed, _ = make_pair()
    weight = packed.weight
    results = [weight.data.clone(), weight + 1, weight.T @ weight, weight.to(torch.bfloat16)]
    assert all(type(result) is torch.Tensor for result in results)
    weight.requires_grad_(False)
    assert "grad_fn" not in repr(weight)
    assert packed.is_packed


def test_a_write_that_would_be_lost_is_refused():
    packed, plain = make_pair()
    weight, other = packed.weight, torch.zeros(24, 70)
    with pytest.raises(EngineError, match="set_ on the weight of a packed layer would be lost"):
        weight.set_(other)
    for pair in ((weight, other), (other, weight)):
        with pytest.raises(RuntimeError, match="Cannot swap"):
            torch.utils.swap_tensors(*pair)
        assert type(other) is torch.Tensor
    for array in (
        weight.numpy(),
        np.asarray(weight),
        weight.data.numpy(),
        weight.numpy(force=True),
    ):
        assert np.array_equal(array, plain.weight.numpy())
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    assert packed.is_packed


def test_a_copy_of_the_weight_is_a_plain_tensor():
    packed, plain = make_pair()
    twins = copy.deepcopy([packed.weight, packed.weight.data])
    for twin in twins:
        assert type(twin) is torch.Tensor
        assert torch.equal(twin, plain.weight)
        twin.zero_()
    weight = packed.weight
    first, second = copy.deepcopy([weight, weight])
    assert first is second
    assert packed.is_packed


def test_the_state_of_another_format_is_refused():
    state = nn.Sequential(make_pair(NF4)[0]).state_dict()
    layer = make_pair(INT4)[0]
    scales = layer.scales.clone()
    with pytest.raises(RuntimeError, match=r"0\.scales are torch.bfloat16 of nf4, .* in int4"):
        nn.Sequential(layer).load_state_dict(state)
    assert torch.equal(layer.scales, scales)
    # the tensors are of the same form, only the metadata tells them apart
    state = make_pair(FORMATS["bnb-nf4"])[0].state_dict()
    with pytest.raises(RuntimeError, match=r"of bnb-nf4, and this layer is in bnb-fp4"):
        make_pair(FORMATS["bnb-fp4"])[0].load_state_dict(state)


def test_a_weight_of_another_shape_is_refused():
    packed, _ = make_pair()
    with pytest.raises(ValueError, match=r"\(2, 2\) for a layer of shape \(24, 70\)"):
        packed.weight.data = torch.ones(2, 2)
    assert packed.is_packed


@every_format
def test_a_new_dtype_changes_the_result_and_not_the_scales(form):
    packed, plain = make_pair(form)
    scales = packed.scales.clone()
    packed.to(torch.bfloat16)
    assert packed.scales.dtype == form.scale_dtype
    assert torch.equal(packed.scales, scales)
    assert packed.bias.dtype == torch.bfloat16
    assert torch.equal(packed.weight, plain.weight.to(torch.bfloat16))
    packed.to(torch.float32)
    assert torch.equal(packed.weight, plain.weight)


@every_format
def test_it_can_move_to_another_device_and_be_emptied_there(form):
    packed, _ = make_pair(form)
    packed.to("meta")
    assert packed.weight.device.type == "meta"
    packed.to_empty(device="cpu")
    assert packed.scales.dtype == form.scale_dtype
    assert packed.weight.device.type == "cpu"


def test_a_deep_copy_is_independent():
    packed, plain = make_pair()
    twin = copy.deepcopy(packed)
    twin.weight.data += 1.0
    assert packed.is_packed
    assert torch.equal(packed.weight, plain.weight)
    assert torch.equal(copy.deepcopy(twin).weight, plain.weight + 1.0)


def test_the_packed_state_loads_into_another_layer():
    packed, plain = make_pair()
    other = Linear4bit.from_linear(nn.Linear(70, 24), NF4, block_size=32)
    assert sorted(packed.state_dict()) == ["bias", "qweight", "scales"]
    other.load_state_dict(packed.state_dict())
    assert torch.equal(other.weight, plain.weight)


@pytest.mark.parametrize("dtype", DTYPES)
def test_to_linear_is_exact_and_plain(dtype):
    packed, plain = make_pair(dtype=dtype)
    linear = packed.to_linear()
    assert type(linear) is nn.Linear
    assert type(linear.weight) is nn.Parameter
    assert torch.equal(linear.weight, plain.weight)
    assert torch.equal(linear.bias, plain.bias)
    assert packed.is_packed


def test_only_the_linears_inside_the_blocks_are_replaced():
    model = make_llama()
    names = replace_linears(model, NF4, block_size=32, compute_dtype=torch.bfloat16)
    assert len(names) == 14
    assert all(name.startswith("model.layers.") for name in names)
    assert type(model.lm_head) is nn.Linear
    assert all(isinstance(model.get_submodule(name), Linear4bit) for name in names)
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert replace_linears(model, NF4) == []


def test_a_skipped_name_stays_dense():
    model = make_llama()
    names = replace_linears(model, NF4, skip=("lm_head", "o_proj"))
    assert len(names) == 12
    assert not any("o_proj" in name for name in names)


def test_a_broken_layer_is_named_and_nothing_is_replaced():
    model = make_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = math.nan
    with pytest.raises(EngineError, match=r"^model\.layers\.1\.mlp\.down_proj: 1 of 2304 weights"):
        replace_linears(model, NF4)
    assert not any(isinstance(module, Linear4bit) for module in model.modules())


def test_a_model_without_blocks_is_refused():
    with pytest.raises(EngineError, match="Linear has no list of decoder layers"):
        replace_linears(nn.Linear(2, 2), NF4)


def test_restoring_gives_a_plain_model_with_the_same_logits():
    model, ids = make_llama(), make_ids()
    base = model(ids).logits
    names = replace_linears(model, NF4)
    expected = model(ids).logits
    model.model.layers[0].mlp.up_proj.weight.data += 0.0
    assert restore_linears(model) == names
    assert all(type(model.get_submodule(name)) is nn.Linear for name in names)
    assert torch.equal(model(ids).logits, expected)
    assert (expected - base).abs().max() > 1e-2


@every_format
def test_a_compiled_layer_is_one_graph_with_the_same_numbers(form):
    packed, plain = make_pair(form)
    x = torch.randn(2, 5, 70)
    torch._dynamo.reset()
    compiled = torch.compile(packed, backend="aot_eager", fullgraph=True)
    for got, expected in zip(run(compiled, x), run(plain, x), strict=True):
        assert torch.equal(got, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(compiled(x), plain(x))


def test_replicas_in_threads_share_one_packed_weight():
    """As torch's DataParallel and servers use a model: several forward passes at the same time."""
    packed, plain = make_pair(columns=700)
    inputs = [torch.randn(6, 700) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(packed, inputs * 10))
    for got, x in zip(made, inputs * 10, strict=True):
        assert torch.equal(got, plain(x))
