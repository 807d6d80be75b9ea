"""What visits the device beside an adapter: the frozen base, packed as it is, and nothing else."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from mudpuppy.memory.arena import aligned, size_of
from mudpuppy.memory.offload import StreamedAdamW
from mudpuppy.memory.streaming import place_for_streaming, stream_layers
from mudpuppy.quant.formats import FORMATS
from mudpuppy.quant.linear4bit import Linear4bit, replace_linears
from tests.mudpuppy.memory.late_arena import LateArena
from tests.mudpuppy.quant.tiny_llama import make_ids, make_llama

LAYERS = 4


def make_adapted(*, is_packed):
    model = make_llama(num_hidden_layers=LAYERS)
    if is_packed:
        replace_linears(model, FORMATS["nf4"])
    torch.manual_seed(3)
    settings = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    return get_peft_model(model, settings).train()


def train(model, optimizer):
    losses = []
    for _ in range(2):
        loss = model(input_ids=make_ids(), labels=make_ids(), use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("is_packed", [False, True])
def test_an_adapter_trains_to_the_same_bits_on_a_streamed_base(is_packed):
    plain, model = (make_adapted(is_packed=is_packed) for _ in range(2))
    place_for_streaming(model, "cpu")
    with stream_layers(model, "cpu", arena=LateArena(), slots=1) as stream:
        optimizer = StreamedAdamW(torch.optim.AdamW(model.parameters(), lr=1e-2), stream)
        streamed = train(model, optimizer)
        assert not stream.ledger.gradient_bytes
        assert stream.ledger.fetches == 2 * (2 * LAYERS - 1)
    assert streamed == train(plain, torch.optim.AdamW(plain.parameters(), lr=1e-2, fused=True))
    for (name, got), expected in zip(
        model.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        assert torch.equal(got, expected), name


def test_packed_weights_visit_packed():
    model = make_adapted(is_packed=True)
    block = model.get_base_model().model.layers[0]
    packed = [b for m in block.modules() if isinstance(m, Linear4bit) for b in m.buffers()]
    dense = sum(
        m.in_features * m.out_features for m in block.modules() if isinstance(m, Linear4bit)
    )
    with stream_layers(model, "cpu") as stream:
        slot = stream.flats[0].size
        assert {"lora" in name for name in stream.flats[0].tensors} == {False}
    norms = [p for n, p in block.named_parameters() if "norm" in n]
    assert slot == sum(aligned(size_of(t)) for t in [*packed, *norms])
    assert sum(map(size_of, packed)) < dense  # half a byte and a scale each, not four bytes


def test_what_two_layers_share_lives_on_the_device():
    """Copies of it in two slots would learn apart."""
    model = make_llama(num_hidden_layers=3).train()
    first, second = model.model.layers[0].mlp, model.model.layers[2].mlp
    second.up_proj.weight = first.up_proj.weight
    plain = copy.deepcopy(model)
    with stream_layers(model, "cpu") as stream:
        for one in (model, plain):
            one(make_ids(), labels=make_ids(), use_cache=False).loss.backward()
        names = ["mlp.up_proj.weight" in flat.tensors for flat in stream.flats]
    assert names == [False, True, False]
    for got, expected in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(got.grad, expected.grad)
