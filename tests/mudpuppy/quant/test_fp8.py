"""fp8: the rounding against a reference by hand, products and gradients against float64."""

import contextlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

from mudpuppy.errors import EngineError
from mudpuppy.quant import fp8
from mudpuppy.quant.fp8 import (
    Fp8Linear,
    Fp8Path,
    choose_fp8_path,
    fp8_linear,
    fp8_linears,
    measure_path_error,
    quantise_fp8,
)
from tests.mudpuppy.quant.tiny_llama import make_ids, make_llama

EMULATED = Fp8Path(hardware=False, reason="test")
HARDWARE = Fp8Path(hardware=True, reason="torch._scaled_mm also runs on a CPU")
PATHS = pytest.mark.parametrize("path", [EMULATED, HARDWARE], ids=["emulated", "scaled_mm"])
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def all_values(dtype: torch.dtype) -> torch.Tensor:
    """Every finite number of a format, sorted: the grid, by enumeration of its 256 patterns."""
    values = torch.arange(256, dtype=torch.uint8).view(dtype).to(torch.float64)
    return values[values.isfinite()].unique()


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@given(seed=st.integers(0, 2**16), exponent=st.integers(-30, 30))
def test_rounding_takes_the_nearest_number_of_the_grid(dtype, seed, exponent):
    x = torch.randn(40, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    found = quantise_fp8(x, dtype)
    wanted = x.double() / found.scale.double()
    grid = all_values(dtype)
    nearest = (wanted[:, None] - grid).abs().amin(dim=1)
    distance = (found.values.double() - wanted).abs()
    # the quotient is made in fp32, which can move a tie by one part in 2**23
    assert bool((distance <= nearest + wanted.abs() * 2**-22).all())
    assert float(found.values.double().abs().max()) == torch.finfo(dtype).max


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("peak", [1e-44, 1e-38, 1.0, 448.0, 449.0, 1e30, 3.4e38])
def test_the_largest_value_fits_however_large_or_small(dtype, peak):
    found = quantise_fp8(torch.tensor([peak, -peak, 0.0]), dtype)
    assert bool(found.values.to(torch.float32).isfinite().all())
    back = found.dequantise()
    # below the smallest normal number the scale stops, and the value is rounded to the grid
    assert torch.allclose(back[0], torch.tensor(peak), rtol=1e-6, atol=2.0**-126)
    assert back[2] == 0


def test_a_tensor_of_zeros_stays_zero_and_an_empty_one_empty():
    found = quantise_fp8(torch.zeros(3, 4), E4M3)
    assert found.scale == 1
    assert not found.dequantise().any()
    assert quantise_fp8(torch.zeros(0, 4), E4M3).values.shape == (0, 4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(bad):
    assert bool(quantise_fp8(torch.tensor([1.0, bad]), E4M3).dequantise().isnan().any())


def linear_case(rows=(3, 7), inner=48, outer=32, *, bias=True, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*rows, inner, generator=generator).to(dtype).requires_grad_()
    w = torch.randn(outer, inner, generator=generator).requires_grad_()
    b = torch.randn(outer, generator=generator).requires_grad_() if bias else None
    g = torch.randn(*rows, outer, generator=generator)
    return x, w, b, g


@PATHS
@pytest.mark.parametrize("rows", [(3, 7), (16,), (1,), ()])
@pytest.mark.parametrize("bias", [True, False])
def test_forward_and_gradients_are_the_products_of_the_rounded_tensors(path, rows, bias):
    """In float64, from the values that were rounded: nothing but the summation is left."""
    x, w, b, g = linear_case(rows, bias=bias)
    y = fp8_linear(x, w, b, path)
    y.backward(g)
    qx, qw = quantise_fp8(x, E4M3).dequantise(torch.float64), quantise_fp8(w, E4M3)
    qw, qg = qw.dequantise(torch.float64), quantise_fp8(g, E5M2).dequantise(torch.float64)
    wanted = nn.functional.linear(qx, qw, None if b is None else b.double())
    assert y.shape == wanted.shape
    torch.testing.assert_close(y.double(), wanted, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(x.grad.double(), qg @ qw, rtol=1e-5, atol=1e-4)
    weight_grad = qg.reshape(-1, 32).t() @ qx.reshape(-1, 48)
    torch.testing.assert_close(w.grad.double(), weight_grad, rtol=1e-5, atol=1e-4)
    if b is not None:
        torch.testing.assert_close(b.grad, g.reshape(-1, 32).sum(0), rtol=1e-5, atol=1e-5)


@PATHS
def test_the_error_against_exact_products_is_that_of_the_formats(path):
    """E4M3 keeps 3 bits (relative error to 1/16), E5M2 2 bits (1/8): norms stay well below."""
    x, w, b, g = linear_case((64,), 128, 64)
    fp8_linear(x, w, b, path).backward(g)
    y = fp8_linear(x, w, b, path)
    dx, dw = x.grad.double(), w.grad.double()
    exact = {
        "y": (y.double(), nn.functional.linear(x.double(), w.double(), b.double()), 0.05),
        "dx": (dx, g.double() @ w.double(), 0.08),
        "dw": (dw, g.double().t() @ x.double(), 0.08),
    }
    for name, (found, wanted, bound) in exact.items():
        error = float((found - wanted).detach().norm() / wanted.detach().norm())
        assert 0.005 < error < bound, f"{name}: {error}; too small would mean it is not fp8 at all"


@PATHS
def test_autocast_decides_the_type_of_the_result(path):
    x, w, b, g = linear_case(dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = fp8_linear(x, w, b, path)
    assert y.dtype == torch.bfloat16
    y.backward(g.bfloat16())
    assert (x.grad.dtype, w.grad.dtype, b.grad.dtype) == (torch.bfloat16,) + (torch.float32,) * 2


def test_a_frozen_weight_gets_no_gradient_and_is_not_touched():
    x, w, _, g = linear_case()
    before = w.detach().clone()
    w.requires_grad_(False)
    fp8_linear(x, w, None, EMULATED).backward(g)
    assert w.grad is None
    assert x.grad is not None
    assert torch.equal(w, before)


def test_only_the_linears_of_the_blocks_change_and_come_back_as_they_were():
    model = make_llama()
    before = {name: type(m) for name, m in model.named_modules()}
    state = {name: t.clone() for name, t in model.state_dict().items()}
    attributes = {name: set(vars(m)) for name, m in model.named_modules()}
    plain = model(make_ids()).logits
    with fp8_linears(model, EMULATED) as names:
        changed = [name for name, m in model.named_modules() if isinstance(m, Fp8Linear)]
        assert names == changed
        assert len(names) == 14
        assert "lm_head" not in names
        assert not torch.equal(model(make_ids()).logits, plain)
    with pytest.raises(KeyError), fp8_linears(model, EMULATED):
        raise KeyError
    assert {name: type(m) for name, m in model.named_modules()} == before
    assert {name: set(vars(m)) for name, m in model.named_modules()} == attributes
    assert torch.equal(model(make_ids()).logits, plain)
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())


def test_an_adapter_stays_in_fp32_and_its_base_is_not_touched():
    model = get_peft_model(make_llama(), LoraConfig(target_modules=["q_proj"], r=2))
    base = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    with fp8_linears(model, EMULATED) as names:
        assert len(names) == 14
        assert any(name.endswith("q_proj.base_layer") for name in names)
        assert not any("lora_" in name for name in names)
        model(make_ids(), labels=make_ids()).loss.backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all(p.dtype == torch.float32 and p.grad is not None for p in trained.values())
    assert all(torch.equal(p, base[n]) for n, p in model.named_parameters() if n in base)


def test_layers_that_hardware_cannot_take_stay_plain():
    with fp8_linears(make_llama(), HARDWARE) as names:  # 72 = intermediate size is no multiple
        assert len(names) == 8
        assert not any(".mlp." in name for name in names)
    odd = make_llama(hidden_size=24, intermediate_size=24, num_key_value_heads=4)
    with pytest.raises(EngineError, match="fp8"), fp8_linears(odd, HARDWARE):
        raise AssertionError("not reached")


def losses(path: Fp8Path | None, steps: int = 30) -> list[float]:
    model = make_llama(spread=1.0, hidden_size=64, intermediate_size=64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    seen = []
    with contextlib.nullcontext() if path is None else fp8_linears(model, path):
        for _ in range(steps):
            loss = model(make_ids(4, 12), labels=make_ids(4, 12)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seen.append(float(loss.detach()))
    return seen


@PATHS
def test_a_run_falls_as_in_fp32(path):
    """The mean distance of the losses is within 2 % of the first loss, while it falls by half."""
    exact, found = losses(None), losses(path)
    assert found[-1] < found[0] / 2
    distance = sum(abs(a - b) for a, b in zip(exact, found, strict=True)) / len(exact)
    assert distance < 0.02 * exact[0]
    assert found != exact


def test_the_choice_is_labelled():
    path = choose_fp8_path(torch.device("cpu"))
    assert not path.hardware
    assert "emulated on cpu" in path.reason


@pytest.mark.parametrize(
    ("arch", "hardware", "largest"),
    [
        ("gfx1100", False, 448),
        ("gfx942", True, 240),
        ("gfx1201", True, 448),
        ("sm_80", False, 448),
        ("sm_90", True, 448),
    ],
)
def test_every_architecture_has_its_formats(monkeypatch, arch, hardware, largest):
    monkeypatch.setattr(fp8, "_arch_of", lambda _: arch)
    monkeypatch.setattr(fp8, "measure_path_error", lambda *_: 0.001)
    path = choose_fp8_path(torch.device("cuda"))
    assert path.hardware is hardware
    assert torch.finfo(path.forward).max == largest
    assert arch in path.reason


def test_a_hardware_product_is_believed_only_when_it_is_right(monkeypatch):
    device = torch.device("cpu")
    assert measure_path_error(HARDWARE, device) < fp8.PROBE_TOLERANCE
    right = torch._scaled_mm
    monkeypatch.setattr(torch, "_scaled_mm", lambda *args, **kw: right(*args, **kw) * 1.5)
    assert measure_path_error(HARDWARE, device) > fp8.PROBE_TOLERANCE
    monkeypatch.setattr(fp8, "_arch_of", lambda _: "gfx1201")
    monkeypatch.setattr(fp8, "measure_path_error", lambda *_: 0.5)
    path = choose_fp8_path(torch.device("cuda"))
    assert not path.hardware
    assert "emulated on gfx1201, whose fp8 product is off by 0.5" in path.reason


def test_hardware_that_raises_is_not_used(monkeypatch):
    def fail(*_):
        raise RuntimeError("no kernel image\nstack")

    monkeypatch.setattr(fp8, "_arch_of", lambda _: "sm_90")
    monkeypatch.setattr(fp8, "measure_path_error", fail)
    path = choose_fp8_path(torch.device("cuda"))
    assert not path.hardware
    assert path.reason == "emulated on sm_90, since no kernel image"
