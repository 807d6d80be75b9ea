"""GPTQ on one matrix is the published algorithm, and beats rounding where inputs are correlated."""

import pytest
import torch

from mudpuppy.errors import EngineError
from mudpuppy.quant.gptq_grid import GptqConfig
from mudpuppy.quant.gptq_matrix import HessianSum, quantise_matrix, round_to_nearest
from mudpuppy.quant.gptq_pack import dequantise_gptq, unpack_rows


def make_problem(rows: int = 32, columns: int = 96, seed: int = 0, rank: int = 24):
    """A gaussian matrix, and inputs that are correlated as the hidden states of a model are."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    mixing = torch.randn(rank, columns, generator=generator, dtype=torch.float64)
    inputs = torch.randn(600, rank, generator=generator, dtype=torch.float64) @ mixing
    inputs += 0.3 * torch.randn(600, columns, generator=generator, dtype=torch.float64)
    return weight, inputs, 2 * inputs.T @ inputs


def reference_levels(weight, hessian, config, grids_from_start):
    """Optimal brain surgeon, one column at a time, with an explicit inverse at every step."""
    columns = weight.shape[1]
    damped = hessian + config.damping * hessian.diagonal().mean() * torch.eye(columns).double()
    order = list(range(columns))
    if config.act_order:
        order = torch.argsort(hessian.diagonal(), descending=True).tolist()
    size = columns if config.group_size == -1 else config.group_size
    left, levels, scale = weight.clone(), torch.zeros_like(weight), None
    middle = 2 ** (config.bits - 1)
    for place, j in enumerate(order):
        rest = order[place:]
        inverse = torch.linalg.inv(damped[rest][:, rest])
        if grids_from_start or place % size == 0:
            start = (j if grids_from_start else place) // size * size
            group = (
                weight[:, start : start + size]
                if grids_from_start
                else left[:, order[start : start + size]]
            )
            scale = 2 * group.abs().amax(dim=1) / (2**config.bits - 1)
            scale = scale.half().double()
        levels[:, j] = (left[:, j] / scale).round().add(middle).clamp(0, 2**config.bits - 1)
        error = (left[:, j] - (levels[:, j] - middle) * scale) / inverse[0, 0]
        left[:, rest] -= error.unsqueeze(1) * inverse[0]
    return levels


@pytest.mark.parametrize("order", ["natural", "static", "moving"])
@pytest.mark.parametrize("group_size", [-1, 16, 40, 256])
def test_the_levels_equal_those_of_the_textbook_update(group_size, order):
    weight, _, hessian = make_problem(columns=48)
    ordered, static = order != "natural", order != "moving"
    config = GptqConfig(
        group_size=group_size, act_order=ordered, static_groups=static, block_size=32
    )
    result = quantise_matrix(weight, hessian, config)
    levels = unpack_rows(result.tensors.qweight, 4).T.double()
    assert torch.equal(levels, reference_levels(weight, hessian, config, ordered and static))
    size = 48 if group_size == -1 else group_size
    by_rank = torch.argsort(hessian.diagonal(), descending=True).argsort()
    places = by_rank if order == "moving" else torch.arange(48)
    assert result.tensors.g_idx.tolist() == (places // size).tolist()


@pytest.mark.parametrize("block_size", [1, 7, 16, 1000])
def test_the_block_size_changes_no_level(block_size):
    weight, _, hessian = make_problem()
    settings = {"group_size": -1}
    expected = quantise_matrix(weight, hessian, GptqConfig(**settings))
    result = quantise_matrix(weight, hessian, GptqConfig(**settings, block_size=block_size))
    assert torch.equal(result.tensors.qweight, expected.tensors.qweight)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("seed", range(2))
def test_it_halves_the_error_of_rounding_on_correlated_inputs(symmetric, bits, seed):
    weight, inputs, hessian = make_problem(seed=seed)
    config = GptqConfig(bits=bits, group_size=32, symmetric=symmetric)
    result = quantise_matrix(weight, hessian, config)
    assert result.gptq_error < 0.5 * result.rtn_error
    values = dequantise_gptq(result.tensors, bits, torch.float64)
    change = inputs @ (weight - values).T
    assert result.gptq_error == pytest.approx(2 * float(change.square().sum()), rel=1e-6)


def test_rounding_to_nearest_is_measured_on_the_same_grid():
    weight, inputs, hessian = make_problem(rows=8)
    result = quantise_matrix(weight, hessian, GptqConfig(group_size=-1))
    scale = (2 * weight.abs().amax(dim=1, keepdim=True) / 15).half().double()
    nearest = (weight / scale).round().clamp(-8, 7) * scale
    change = inputs @ (weight - nearest).T
    assert result.rtn_error == pytest.approx(2 * float(change.square().sum()), rel=1e-6)


def test_white_inputs_leave_nothing_to_gain():
    weight, _, _ = make_problem()
    result = quantise_matrix(weight, torch.eye(96).double(), GptqConfig(group_size=32))
    assert result.gptq_error == pytest.approx(result.rtn_error, rel=1e-9)


def test_an_asymmetric_grid_helps_where_weights_are_one_sided():
    weight, _, hessian = make_problem()
    config = {"group_size": 32}
    errors = [
        quantise_matrix(weight.abs(), hessian, GptqConfig(**config, symmetric=symmetric))
        for symmetric in (True, False)
    ]
    assert errors[1].rtn_error < 0.5 * errors[0].rtn_error
    assert int(unpack_rows(errors[1].tensors.qzeros.T, 4).max()) <= 14


def test_inputs_that_were_always_zero_round_to_the_nearest_level():
    weight, inputs, _ = make_problem(rows=8)
    inputs[:, 10:20] = 0
    result = quantise_matrix(weight, 2 * inputs.T @ inputs, GptqConfig(act_order=True))
    values = dequantise_gptq(result.tensors, 4, torch.float64)
    scales = result.tensors.scales.double().T[:, :1]
    dead = weight[:, 10:20]
    assert torch.allclose(values[:, 10:20], (dead / scales).round().clamp(-8, 7) * scales)


def test_a_singular_hessian_gets_more_damping_and_still_a_good_result():
    weight, _, _ = make_problem()
    column = torch.ones(96).double()
    singular = torch.outer(column, column).float() * 1e6
    result = quantise_matrix(weight, singular, GptqConfig(damping=1e-12))
    assert result.damping > 1e-12
    assert result.gptq_error < 0.1 * result.rtn_error


def test_a_hessian_that_no_damping_mends_is_an_error():
    weight, _, _ = make_problem()
    indefinite = torch.full((96, 96), 1e12).double().fill_diagonal_(1.0)
    with pytest.raises(EngineError, match="cannot be inverted, even with damping"):
        quantise_matrix(weight, indefinite, GptqConfig())


@pytest.mark.parametrize("where", ["weight", "hessian"])
def test_what_is_not_finite_is_an_error(where):
    weight, _, hessian = make_problem()
    (weight if where == "weight" else hessian)[0, 0] = float("nan")
    with pytest.raises(EngineError, match="NaN or infinite"):
        quantise_matrix(weight, hessian, GptqConfig())


def test_a_matrix_of_zeros_stays_zero():
    _, _, hessian = make_problem()
    result = quantise_matrix(torch.zeros(8, 96), hessian, GptqConfig(group_size=32))
    assert not dequantise_gptq(result.tensors, 4, torch.float32).any()
    assert result.gptq_error == result.rtn_error == 0.0


@pytest.mark.parametrize("size", [1e-5, 1e-3, 100.0])
def test_small_and_large_weights_keep_a_usable_scale(size):
    weight, _, hessian = make_problem()
    result = quantise_matrix(weight * size, hessian, GptqConfig(group_size=32))
    values = dequantise_gptq(result.tensors, 4, torch.float64)
    assert bool(torch.isfinite(values).all())
    assert result.gptq_error < result.rtn_error
    assert float((values - weight * size).norm() / (weight * size).norm()) < 0.2


@pytest.mark.parametrize("size", [1e-9, 1e-6])
def test_weights_below_float16_scales_are_an_error_and_not_zeros(size):
    weight, _, hessian = make_problem()
    with pytest.raises(EngineError, match="too small for float16 scales"):
        quantise_matrix(weight * size, hessian, GptqConfig(group_size=32))
    with pytest.raises(EngineError, match="too small for float16 scales"):
        round_to_nearest(weight * size, GptqConfig(group_size=32))


def test_a_weight_beyond_float16_is_an_error():
    weight, _, hessian = make_problem()
    with pytest.raises(EngineError, match="too large for a float16 scale"):
        quantise_matrix(weight * 1e7, hessian, GptqConfig())


def test_the_hessian_sums_over_batches():
    _, inputs, hessian = make_problem()
    total = HessianSum(96, torch.device("cpu"))
    for part in inputs.view(3, 200, 96).to(torch.bfloat16):
        total.add(part)
    assert torch.allclose(total.matrix.double(), hessian, rtol=0.02, atol=hessian.max() * 0.01)


@pytest.mark.parametrize(
    "wrong", [{"bits": 5}, {"group_size": 0}, {"damping": -1.0}, {"block_size": 0}]
)
def test_a_wrong_setting_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GptqConfig(**wrong)


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_act_order_is_never_much_worse_than_without(static, seed):
    weight, _, hessian = make_problem(seed=seed)
    plain = quantise_matrix(weight, hessian, GptqConfig(group_size=32))
    config = GptqConfig(group_size=32, act_order=True, static_groups=static)
    assert quantise_matrix(weight, hessian, config).gptq_error < 1.1 * plain.gptq_error


@pytest.mark.parametrize("static", [True, False])
def test_the_reported_error_is_that_of_the_packed_weight_in_any_order(static):
    weight, inputs, hessian = make_problem()
    config = GptqConfig(bits=3, group_size=32, act_order=True, static_groups=static)
    result = quantise_matrix(weight, hessian, config)
    change = inputs @ (weight - dequantise_gptq(result.tensors, 3, torch.float64)).T
    assert result.gptq_error == pytest.approx(2 * float(change.square().sum()), rel=1e-6)
    assert result.gptq_error < 0.5 * result.rtn_error


def test_rounding_to_nearest_alone_is_the_baseline_that_is_reported():
    weight, inputs, hessian = make_problem()
    for config in (GptqConfig(group_size=24), GptqConfig(bits=3, symmetric=False, clip="mse")):
        nearest = round_to_nearest(weight.float(), config)
        change = inputs.float() @ (weight.float() - nearest).T
        result = quantise_matrix(weight.float(), hessian.float(), config)
        assert result.rtn_error == pytest.approx(2 * float(change.square().sum()), rel=1e-4)
