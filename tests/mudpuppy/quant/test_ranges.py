"""Ranges that outlast a step: gradients in float64, averages by hand, phases, int8 twins."""

import pytest
import torch
from torch import nn

from mudpuppy.quant.fake_quant import fake_quant_linear, fake_quantised, find_quantised, ranges_of
from mudpuppy.quant.int8 import Int8Linear, load_int8, quantise_weights, save_int8
from mudpuppy.quant.int8_matrix import peaks_of, scales_of
from mudpuppy.quant.ranges import LayerRanges, RangeSettings
from mudpuppy.quant.stepping import end_step, step_states
from tests.mudpuppy.quant.tiny_llama import make_ids, make_llama

KINDS = {
    "tensor": RangeSettings(per_tensor=True),
    "learned": RangeSettings(learned=True),
    "tensor learned": RangeSettings(per_tensor=True, learned=True),
    "frozen": RangeSettings(freeze=0.5),
    "tensor frozen": RangeSettings(per_tensor=True, freeze=0.5),
    "everything": RangeSettings(per_tensor=True, learned=True, warmup=0.3, freeze=0.7),
}


def lsq(v, scale, count):
    """Round with the gradients of LSQ, by autograd on a formula of its own."""
    scale = scale * (count * 127) ** -0.5 + (scale - scale * (count * 127) ** -0.5).detach()
    reached = v / scale
    level = reached.round()
    inside = level.abs() <= 127
    passed = reached + (level - reached).detach()
    return torch.where(inside, passed, level.sign() * 127) * scale


@pytest.mark.parametrize("rows", [(3, 5), (4,), ()])
@pytest.mark.parametrize("given", ["input", "weight", "both"])
def test_gradients_are_those_of_lsq(rows, given):
    """Ranges of two thirds of the largest values, so that some are clipped."""
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(*rows, 24, generator=generator), torch.randn(16, 24, generator=generator)
    g = torch.randn(*rows, 16, generator=generator)
    x_scale = (x.abs().amax() / 190).view(1, 1)
    w_scales = peaks_of(w) / 190
    mine = [leaf.clone().requires_grad_() for leaf in (x, w, x_scale, w_scales)]
    theirs = [leaf.double().requires_grad_() for leaf in (x, w, x_scale, w_scales)]
    use_x, use_w = given in ("input", "both"), given in ("weight", "both")
    found = fake_quant_linear(
        mine[0],
        mine[1],
        None,
        x_scale=mine[2] if use_x else None,
        w_scales=mine[3] if use_w else None,
    )
    own_x = scales_of(peaks_of(x.reshape(-1, 24))).double().view(*rows, 1)
    own_w = scales_of(peaks_of(w)).double()
    exact = nn.functional.linear(
        lsq(theirs[0], theirs[2].view(1) if use_x else own_x, 24),
        lsq(theirs[1], theirs[3] if use_w else own_w, 24),
    )
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    found.backward(g)
    exact.backward(g.double())
    for leaf, wanted in zip(mine, theirs, strict=True):
        if wanted.grad is None:
            assert leaf.grad is None
        else:
            torch.testing.assert_close(leaf.grad.double(), wanted.grad, rtol=1e-4, atol=1e-4)
    clipped = (x.abs() > 127.5 * x_scale).any() and (w.abs() > 127.5 * w_scales).any()
    assert clipped


def layer_with(settings, out=3, columns=4):
    layer = nn.Linear(columns, out, bias=False)
    layer.add_module("ranges", LayerRanges(layer, settings))
    return layer, layer.ranges


def step(ranges, *batches, share=0.0):
    ranges.begin_step(share)
    for batch in batches:
        ranges.observe(batch)
    end_step([ranges])


def test_the_observed_range_is_the_average_of_the_steps():
    _, ranges = layer_with(RangeSettings(per_tensor=True, momentum=0.75))
    own = torch.tensor([[0.5, -2.0]])
    # before the first step has ended: that of the tensor itself
    assert float(ranges.input_scale(own)) == pytest.approx(2.0 / 127)
    step(ranges, torch.tensor([1.0, -4.0]), torch.tensor([3.0]))
    assert float(ranges.input_peak) == 4.0
    step(ranges, torch.tensor([8.0]))
    assert float(ranges.input_peak) == 5.0
    assert float(ranges.input_scale(own)) == pytest.approx(5.0 / 127)
    step(ranges, torch.tensor([float("nan"), float("inf")]))
    step(ranges)
    assert float(ranges.input_peak) == 5.0


def test_what_a_step_shows_twice_or_in_parts_counts_once():
    parts = [torch.tensor([1.0, -4.0]), torch.tensor([3.0])]
    found = []
    for batches in (parts, parts * 2, [torch.cat(parts)]):
        _, ranges = layer_with(RangeSettings(per_tensor=True))
        step(ranges, torch.tensor([1.0]))
        step(ranges, *batches)
        found.append(float(ranges.input_peak))
    assert found == [found[0]] * 3
    assert found[0] == pytest.approx(0.9 + 0.4)


def test_rounding_begins_after_the_warm_up_and_ranges_stand_still_once_frozen():
    layer, ranges = layer_with(
        RangeSettings(per_tensor=True, warmup=0.5, freeze=0.75, momentum=0.0)
    )
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    step(ranges, x, share=0.0)
    assert not ranges.rounding
    assert float(ranges.input_peak) == float(x.abs().max())
    step(ranges, x * 2, share=0.5)
    assert ranges.rounding
    assert not ranges.frozen
    assert ranges.weight_scales(layer.weight) is None
    before = layer.weight.detach().clone()
    step(ranges, x * 9, share=0.75)
    assert ranges.frozen
    assert float(ranges.input_peak) == float((x * 2).abs().max())
    with torch.no_grad():
        layer.weight.mul_(3)
    step(ranges, x, share=0.9)
    assert torch.equal(ranges.weight_scales(layer.weight), scales_of(peaks_of(before)))


def test_learned_ranges_begin_where_observing_ended_and_are_not_observed_any_more():
    layer, ranges = layer_with(RangeSettings(per_tensor=True, learned=True, warmup=0.5))
    step(ranges, torch.tensor([2.0]), share=0.0)
    assert not ranges.weight_peak.any()
    step(ranges, torch.tensor([50.0]), share=0.5)
    assert float(ranges.input_peak) == 2.0
    assert torch.equal(ranges.weight_peak, peaks_of(layer.weight))
    x = torch.tensor([1.0])
    assert float(ranges.input_scale(x).detach()) == pytest.approx(2.0 / 127)
    with torch.no_grad():
        ranges.input_stretch.fill_(1.0)
    assert float(ranges.input_scale(x).detach()) == pytest.approx(2.0 / 127 * 2.718281828)
    assert ranges.input_scale(x).requires_grad
    ranges.begin_step(1.0)
    assert not ranges.frozen


def train(model, steps=8, lr=3e-3):
    """Train as the engine does, and return the losses."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    ids, seen = make_ids(4, 12), []
    model.train()
    for index in range(steps):
        for one in step_states(model):
            one.begin_step(index / steps)
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        end_step(step_states(model))
        seen.append(float(loss.detach()))
    for one in step_states(model):
        one.begin_step(1.0)
    model.eval()
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_the_int8_model_answers_as_its_twin_bit_for_bit(kind, tmp_path):
    settings = KINDS[kind]
    model = make_llama(bias=True, spread=1.0)
    names = set(model.state_dict())
    with fake_quantised(model, settings):
        losses = train(model)
        assert losses[-1] < losses[0]
        with torch.no_grad():
            twin = model(make_ids()).logits
            layer = model.model.layers[0].self_attn.q_proj
            x = torch.randn(2, 3, 32)
            alone = layer(x)
    assert set(model.state_dict()) == names, "nothing of the ranges stays in what is saved"
    assert torch.equal(Int8Linear.from_linear(layer)(x), alone)
    save_int8(model, None, tmp_path / "int8", quantise_weights(model), torch.float32)
    found = load_int8(tmp_path / "int8")
    with torch.no_grad():
        assert torch.equal(found(make_ids()).logits, twin)
    static = [m.input_scale is not None for m in found.modules() if isinstance(m, Int8Linear)]
    assert static == [settings.per_tensor] * 14


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_scale_of_the_inputs_is_never_rounded_whatever_the_model_computes_in(dtype, tmp_path):
    model = make_llama(spread=1.0)
    with fake_quantised(model, RangeSettings(per_tensor=True)):
        train(model, 2)
    scales = {name: ranges_of(layer).input.view(1) for name, layer in find_quantised(model).items()}
    save_int8(model, None, tmp_path / "int8", quantise_weights(model), dtype)
    found = load_int8(tmp_path / "int8").to("cpu").to(dtype)
    for name, scale in scales.items():
        layer = found.get_submodule(name)
        assert layer.input_scale.dtype == torch.float32
        assert torch.equal(layer.input_scale, scale), name


@pytest.mark.parametrize("kind", ["learned", "tensor learned"])
def test_learned_ranges_move_and_pay(kind):
    """From ranges of 40 times what is needed (3 bits are left), learning them lowers the loss."""

    def losses(settings, lr):
        torch.manual_seed(0)
        model = make_llama(spread=1.0)
        with fake_quantised(model, settings):
            states = step_states(model)
            for one in states:
                one.begin_step(0.0)
                one.weight_peak.copy_(peaks_of(one._layer[0].weight) * 40)
            before = [one.weight_stretch.detach().clone() for one in states]
            seen = train(model, 30, lr)
            moved = [
                not torch.equal(one.weight_stretch, b)
                for one, b in zip(states, before, strict=True)
            ]
        return seen, moved

    seen, moved = losses(KINDS[kind], 3e-3)
    assert all(moved)
    assert seen[-1] < seen[0] / 2


def test_frozen_learned_ranges_have_no_gradient():
    model = make_llama(spread=1.0)
    with fake_quantised(model, RangeSettings(per_tensor=True, learned=True, freeze=0.5)):
        states = step_states(model)
        for share, wanted in ((0.0, True), (0.5, False)):
            for one in states:
                one.begin_step(share)
            model.zero_grad()
            model.train()(make_ids(), labels=make_ids()).loss.backward()
            end_step(states)
            found = {one.weight_stretch.grad is not None for one in states}
            found |= {one.input_stretch.grad is not None for one in states}
            assert found == {wanted}


def test_only_training_is_observed():
    model = make_llama()
    with fake_quantised(model, RangeSettings(per_tensor=True)):
        states = step_states(model)
        assert len(states) == len(find_quantised(make_llama())) == 14
        model(make_ids())
        with torch.no_grad():
            model.train()(make_ids())
        assert not any(one.noted.any() for one in states)
        model(make_ids())
        assert all(one.noted.all() for one in states)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_that_is_saved_and_loaded_goes_on_as_it_was(kind):
    model = make_llama(spread=1.0)
    with fake_quantised(model, KINDS[kind]):
        train(model)
        kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with torch.no_grad():
            wanted = model(make_ids()).logits
    other = make_llama(spread=1.0)
    with fake_quantised(other, KINDS[kind]):
        other.load_state_dict(kept, strict=True)
        for one in step_states(other):
            one.begin_step(1.0)
        with torch.no_grad():
            assert torch.equal(other(make_ids()).logits, wanted)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_input_that_is_not_finite_shows_under_a_static_scale(bad):
    layer, ranges = layer_with(RangeSettings(per_tensor=True))
    step(ranges, torch.tensor([1.0]))
    x = torch.tensor([[1.0, bad, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    y = fake_quant_linear(x, layer.weight, None, x_scale=ranges.input_scale(x))
    assert bool(y[0].isnan().all())
    assert bool(y[1].isfinite().all())


def test_a_layer_without_ranges_has_none():
    assert ranges_of(nn.Linear(2, 2)) == (None, None)
