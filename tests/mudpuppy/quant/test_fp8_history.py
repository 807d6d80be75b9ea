"""Delayed fp8 scaling: formats against ml_dtypes, the window by hand, saturation, checkpoints."""

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mudpuppy.checkpoint_form import FP8_HISTORY_FILE
from mudpuppy.errors import OutputError
from mudpuppy.quant.fp8 import (
    Fp8Path,
    fp8_linear,
    fp8_linears,
    quantise_delayed,
    quantise_fp8,
)
from mudpuppy.quant.fp8_history import (
    GRADIENT,
    INPUT,
    WEIGHT,
    Fp8History,
    count_saturation,
    describe_saturation,
    histories_of,
    load_histories,
    save_histories,
)
from mudpuppy.quant.stepping import end_step, step_states
from tests.mudpuppy.quant.tiny_llama import make_ids, make_llama

FORMATS = {
    torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn,
    torch.float8_e5m2: ml_dtypes.float8_e5m2,
    torch.float8_e4m3fnuz: ml_dtypes.float8_e4m3fnuz,
    torch.float8_e5m2fnuz: ml_dtypes.float8_e5m2fnuz,
}
EMULATED = Fp8Path(hardware=False, reason="test")
CDNA3 = Fp8Path(
    hardware=False,
    reason="test",
    forward=torch.float8_e4m3fnuz,
    gradient=torch.float8_e5m2fnuz,
)
CPU = torch.device("cpu")


def history_with(*peaks, window=4, place=INPUT):
    """A history whose steps have shown these peaks."""
    history = Fp8History(window, CPU)
    for peak in peaks:
        history.note(place, torch.tensor(float(peak)))
        end_step([history])
    return history


def encoded(values, kind):
    """Bytes of ml_dtypes' own encoder for values (float64) that fit the format."""
    return values.astype(kind).view(np.uint8)


@pytest.mark.parametrize("dtype", FORMATS)
@given(
    seed=st.integers(0, 2**16), exponent=st.integers(-30, 30), delay=st.sampled_from([0, 0.25, 4])
)
def test_every_byte_is_that_of_an_independent_encoder(dtype, seed, exponent, delay):
    """float64 in, clipped to the format's largest number; ml_dtypes rounds to nearest even."""
    x = torch.randn(64, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    if delay:
        history = history_with(float(x.abs().max()) * delay)
        found = quantise_delayed(x, dtype, history, INPUT, watched=False)
    else:
        found = quantise_fp8(x, dtype)
    largest = float(ml_dtypes.finfo(FORMATS[dtype]).max)
    assert torch.finfo(dtype).max == largest
    exact = x.double().numpy() / float(found.scale)
    # the quotient is made in float32; where that lands on another side of a tie both are right
    single = exact.astype(np.float32).astype(np.float64)
    wanted = encoded(np.clip(single, -largest, largest), FORMATS[dtype])
    assert np.array_equal(found.values.view(torch.uint8).numpy(), wanted)


@pytest.mark.parametrize("dtype", FORMATS)
def test_every_number_of_a_format_is_read_as_ml_dtypes_reads_it(dtype):
    patterns = torch.arange(256, dtype=torch.uint8)
    found = patterns.view(dtype).to(torch.float64).numpy()
    wanted = patterns.numpy().view(FORMATS[dtype]).astype(np.float64)
    assert np.array_equal(found, wanted, equal_nan=True)


def test_the_scale_follows_the_largest_of_the_window_and_forgets():
    x = torch.tensor([1.0])
    largest = torch.finfo(torch.float8_e4m3fn).max
    history = Fp8History(2, CPU)
    found = []
    for peak in (4.0, 8.0, 2.0, 1.0, 1.0):
        scale = quantise_delayed(x, torch.float8_e4m3fn, history, INPUT, watched=False).scale
        found.append(float(scale) * largest)
        history.note(INPUT, torch.tensor(peak))
        end_step([history])
    # the tensor's own, then what the two steps before it have shown
    assert found == pytest.approx([1.0, 4.0, 8.0, 8.0, 2.0])


def test_a_step_without_a_finite_value_is_no_entry():
    history = history_with(3.0)
    before = history.peaks.clone()
    for bad in (float("nan"), float("inf"), 0.0):
        history.note(INPUT, torch.tensor(bad))
        end_step([history])
    assert torch.equal(history.peaks, before)


def test_what_the_history_had_not_shown_is_clipped_and_counted():
    history = history_with(1.0)
    x = torch.tensor([0.5, -1.0, 1.01, -100.0])
    found = quantise_delayed(x, torch.float8_e4m3fn, history, INPUT, watched=True)
    assert found.dequantise().tolist() == pytest.approx([0.5, -1.0, 1.0, -1.0], rel=0.07)
    assert history.counts.tolist() == [4, 2]
    end_step([history])
    again = quantise_delayed(x, torch.float8_e4m3fn, history, INPUT, watched=True)
    assert float(again.dequantise()[3]) == pytest.approx(-100.0)
    assert history.counts.tolist() == [8, 2]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(bad):
    found = quantise_delayed(
        torch.tensor([1.0, bad]), torch.float8_e4m3fn, history_with(1.0), INPUT, watched=True
    )
    assert bool(found.dequantise()[1].isnan())


@pytest.mark.parametrize("path", [EMULATED, CDNA3], ids=["ocp", "fnuz"])
def test_products_and_gradients_are_those_of_the_delayed_scales(path):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 32, generator=generator, requires_grad=True)
    w = torch.randn(16, 32, generator=generator, requires_grad=True)
    g = torch.randn(6, 16, generator=generator)
    peaks = {INPUT: 1.5, WEIGHT: 9.0, GRADIENT: 2.0}
    history = Fp8History(3, CPU)
    for place, peak in peaks.items():
        history.note(place, torch.tensor(peak))
    end_step([history])
    y = fp8_linear(x, w, None, path, history=history, watched=True)
    y.backward(g)

    def rounded(tensor, place, dtype):
        largest = float(ml_dtypes.finfo(FORMATS[dtype]).max)
        scale = np.float32(peaks[place]) / np.float32(largest)
        single = (tensor.detach().numpy() / scale).clip(-largest, largest)
        return torch.from_numpy(
            single.astype(FORMATS[dtype]).astype(np.float64) * np.float64(scale)
        )

    qx, qw = rounded(x, INPUT, path.forward), rounded(w, WEIGHT, path.forward)
    qg = rounded(g, GRADIENT, path.gradient)
    torch.testing.assert_close(y.double(), qx @ qw.t(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(x.grad.double(), qg @ qw, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(w.grad.double(), qg.t() @ qx, rtol=1e-5, atol=1e-4)
    end_step([history])
    seen = [float(t.detach().abs().max()) for t in (x, w, g)]
    assert history.peaks[:, 0].tolist() == pytest.approx(seen)


def train(model, steps):
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids, seen = make_ids(4, 12), []
    model.train()
    for _ in range(steps):
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        end_step(step_states(model))
        seen.append(float(loss.detach()))
    return seen


def test_a_run_falls_as_with_current_scaling_and_leaves_no_trace():
    found = {}
    for window in (None, 4):
        model = make_llama(spread=1.0)
        names = set(model.state_dict())
        with fp8_linears(model, EMULATED, window) as layers:
            found[window] = train(model, 20)
            assert set(model.state_dict()) == names
            assert len(histories_of(model)) == (0 if window is None else len(layers))
            if window:
                rounded, clipped = count_saturation(model)
                assert 0 < clipped < rounded / 100
                assert f"{clipped:,} of {rounded:,}" in describe_saturation(model).reason
        assert not step_states(model)
    assert found[4] != found[None]
    assert found[4][0] == found[None][0], "the first step has only its own values"
    distance = sum(abs(a - b) for a, b in zip(found[4], found[None], strict=True)) / 20
    assert distance < 0.02 * found[None][0]


def test_recomputed_activations_change_no_bit():
    found = []
    for recomputed in (False, True):
        model = make_llama(spread=1.0)
        if recomputed:
            model.activation_checkpointing_enable({"use_reentrant": False})
        with fp8_linears(model, EMULATED, 4):
            found.append(train(model, 4))
    assert found[0] == found[1]


def test_histories_are_saved_and_loaded(tmp_path):
    model, other = make_llama(spread=1.0), make_llama(spread=1.0)
    with fp8_linears(model, EMULATED, 4), fp8_linears(other, EMULATED, 4):
        train(model, 3)
        save_histories(model, tmp_path)
        load_histories(other, tmp_path)
        for one, two in zip(histories_of(model), histories_of(other), strict=True):
            assert one.peaks[:, :3].all()
            assert torch.equal(one.peaks, two.peaks)
            assert torch.equal(one.counts, two.counts)


def test_a_file_that_does_not_fit_is_refused_and_a_plain_model_needs_none(tmp_path):
    load_histories(make_llama(), tmp_path)
    save_histories(make_llama(), tmp_path)
    assert not list(tmp_path.iterdir())
    model = make_llama()
    with fp8_linears(model, EMULATED, 4):
        with pytest.raises(OutputError, match="missing"):
            load_histories(model, tmp_path)
        save_histories(model, tmp_path)
        tensors = load_file(tmp_path / FP8_HISTORY_FILE)
        del tensors["3.peaks"]
        save_file(tensors, tmp_path / FP8_HISTORY_FILE)
        with pytest.raises(OutputError, match="other layers"):
            load_histories(model, tmp_path)
        save_histories(model, tmp_path)
    with fp8_linears(model, EMULATED, 5), pytest.raises(OutputError, match="fp8-window"):
        load_histories(model, tmp_path)
