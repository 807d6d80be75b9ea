"""What streaming keeps on the device, counted tensor by tensor; and a model larger than it."""

import pytest
import torch
from torch import nn

from mudpuppy.memory.arena import DeviceFull, aligned
from mudpuppy.memory.meter import CountedArena, DeviceMeter
from mudpuppy.memory.offload import StreamedAdamW
from mudpuppy.memory.streaming import LayerStream, stream_layers
from tests.mudpuppy.quant.tiny_llama import make_ids, make_llama

LAYERS = 24


def make_model(layers=LAYERS):
    return make_llama(num_hidden_layers=layers, hidden_size=64, intermediate_size=160).train()


def train(model, optimizer, steps=2, length=9):
    losses = []
    for _ in range(steps):
        ids = make_ids(length=length)
        loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def train_resident(layers=LAYERS):
    model = make_model(layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    with DeviceMeter() as meter:
        meter.count_model(model)
        return train(model, optimizer), meter


def train_streamed(layers=LAYERS, *, budget=None, slots=2) -> tuple[list[float], LayerStream]:
    model = make_model(layers)
    arena = CountedArena(budget=budget)
    with stream_layers(model, "cpu", arena=arena, slots=slots) as stream:
        optimizer = StreamedAdamW(torch.optim.AdamW(model.parameters(), lr=1e-2), stream)
        with arena.meter as meter:
            meter.count_model(model)
            return train(model, optimizer), stream


def test_a_quarter_of_the_device_is_enough_for_24_layers():
    losses, resident = train_resident()
    streamed, stream = train_streamed()

    assert streamed == losses
    assert stream.arena.meter.peak <= 0.25 * resident.peak


@pytest.mark.parametrize("slots", [1, 3])
def test_the_device_holds_so_many_layers_one_checkpoint_a_layer_and_what_is_in_none(slots):
    """Beside the bound is one layer at work: its activations, and gradients on their way."""
    peaks = {n: train_streamed(n, slots=slots)[1].arena.meter.peak for n in (8, 16, 24)}
    border = make_ids().numel() * 64 * 4

    # a further layer costs a checkpoint, and the few bytes of a generator's state (5 KB)
    assert peaks[16] - peaks[8] == peaks[24] - peaks[16] <= 8 * (border + 8192)
    _, stream = train_streamed(8, slots=slots)
    slot = stream.flats[0].size
    more = train_streamed(8, slots=slots + 1)[1].arena.meter.peak - peaks[8]
    assert more == slot


def test_a_model_four_times_the_budget_trains_and_nothing_else_fits():
    layers = 40
    weights = sum(p.nbytes for p in make_model(layers).parameters())
    budget = weights // 4

    losses, stream = train_streamed(layers, budget=budget)
    assert losses[1] < losses[0]
    assert weights >= 4 * stream.arena.meter.peak
    with pytest.raises(DeviceFull, match="budget"):
        train_streamed(layers, budget=budget, slots=8)
    with pytest.raises(DeviceFull, match="budget"), DeviceMeter(budget=budget) as meter:
        meter.count_model(make_model(layers))


def test_a_slot_beyond_the_budget_is_refused_with_what_to_do():
    model = make_model(4)
    slot = aligned(1 << 16)
    arena = CountedArena(budget=slot)
    with (
        stream_layers(model, "cpu", arena=arena),
        pytest.raises(DeviceFull, match="lower --stream-layers"),
    ):
        model(make_ids())


def test_a_weight_that_stays_behind_is_counted():
    """What the stream's own books would never show."""
    model = make_model(4)
    arena, kept = CountedArena(), []
    with stream_layers(model, "cpu", arena=arena) as stream, arena.meter:
        lend = stream.lend

        def lend_and_keep(index):
            lent = lend(index)
            kept.extend(t * 1 for t in lent.values())
            return lent

        stream.lend = lend_and_keep
        model(make_ids())
    assert arena.meter.live > 4 * stream.flats[0].size


def test_weights_mapped_from_a_file_are_streamed_from_its_pages(tmp_path):
    """Frozen ones: nothing is copied into memory of the host, and nothing is written."""
    from safetensors.torch import load_file, save_file

    model, plain = make_model(4), make_model(4)
    save_file({n: p.detach() for n, p in model.named_parameters()}, tmp_path / "model.safetensors")
    mapped = load_file(tmp_path / "model.safetensors")
    for name, parameter in model.named_parameters():
        parameter.data = mapped[name]
        parameter.requires_grad_("embed" in name)
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_("embed" in name)
    arena = CountedArena()
    with stream_layers(model, "cpu", arena=arena, gathers=False) as stream:
        for one in (model, plain):
            one(make_ids(), labels=make_ids(), use_cache=False).loss.backward()
    assert torch.equal(model.model.embed_tokens.weight.grad, plain.model.embed_tokens.weight.grad)
    assert not arena.host_bytes
    assert stream.ledger.fetches == 2 * 4 - 2
    layers = list(model.model.layers.parameters())
    assert {p.data_ptr() for p in layers} <= {t.data_ptr() for t in mapped.values()}
