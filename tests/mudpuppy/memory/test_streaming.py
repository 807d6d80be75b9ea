"""Streaming moves every layer twice a step, holds one at a time, and changes no number."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, Qwen2Config
from transformers.models.gemma3.configuration_gemma3 import Gemma3TextConfig

from mudpuppy.errors import EngineError
from mudpuppy.memory.arena import PASSED, size_of
from mudpuppy.memory.ring import SlotRing
from mudpuppy.memory.streaming import LayerStream, _Receiver, place_for_streaming, stream_layers
from tests.mudpuppy.memory.late_arena import LateArena, LateMark, spoil
from tests.mudpuppy.quant.tiny_llama import make_ids, make_llama

LAYERS = 3


def make_model(**changes):
    return make_llama(num_hidden_layers=LAYERS, **changes).train()


def step(model) -> torch.Tensor:
    """One forward and backward; the loss."""
    loss = model(make_ids(), labels=make_ids(), use_cache=False).loss
    loss.backward()
    return loss.detach()


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters()}


def assert_equal_tensors(got, expected):
    assert got.keys() == expected.keys()
    for name, tensor in got.items():
        assert torch.equal(tensor, expected[name]), name


def slot_bytes(stream) -> int:
    return max(flat.size for flat in stream.flats)


def check_one_step(stream: LayerStream, slots: int = 2) -> None:
    """What one forward and backward must have moved and held."""
    ledger, size = stream.ledger, slot_bytes(stream)
    assert ledger.forward_bytes == LAYERS * size
    assert ledger.backward_bytes == (LAYERS - slots) * size
    assert ledger.gradient_bytes == layer_bytes_of(stream)
    assert ledger.peak_layers == slots
    assert ledger.peak_bytes == slots * size
    assert ledger.resident_layers == 0
    # what really crossed: no weight was ever copied back
    assert stream.arena.inward == ledger.forward_bytes + ledger.backward_bytes
    assert stream.arena.outward == ledger.gradient_bytes


def layer_bytes_of(stream) -> int:
    return sum(size_of(t) for flat in stream.flats for t in flat.trained.values())


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_a_step_moves_every_layer_twice_but_those_at_the_turn(slots):
    model = make_model()
    with stream_layers(model, "cpu", slots=slots) as stream:
        step(model)
        check_one_step(stream, slots)
        assert stream.arena.peak == slots * slot_bytes(stream)
        step(model)
        assert stream.ledger.fetches == 2 * (2 * LAYERS - slots)
    assert stream.arena.taken == 0


def test_layers_come_before_they_are_needed_and_leave_when_done():
    model = make_model()
    with stream_layers(model, "cpu") as stream:
        step(model)
    order = [(e.kind, e.layer) for e in stream.ledger.events if e.kind in ("bring", "hold")]
    assert order == [
        *(("bring", 0), ("hold", 0), ("bring", 1), ("hold", 1), ("bring", 2), ("hold", 2)),
        *(("hold", 2), ("hold", 1), ("bring", 0), ("hold", 0)),
    ]
    gradients = [e.layer for e in stream.ledger.events if e.kind == "gradient"]
    assert gradients == sorted(gradients, reverse=True)


def test_loss_and_every_gradient_are_bit_identical():
    plain, model = make_model(), make_model()
    expected = step(plain)
    with stream_layers(model, "cpu"):
        assert torch.equal(step(model), expected)
    assert_equal_tensors(gradients(model), gradients(plain))


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_copies_may_be_as_late_as_they_like(slots):
    plain, model = make_model(), make_model()
    for _ in range(2):
        step(plain)
    with stream_layers(model, "cpu", arena=LateArena(), slots=slots):
        for _ in range(2):
            step(model)
    assert_equal_tensors(gradients(model), gradients(plain))


def forgets_to_wait_for_a_layer(monkeypatch):
    monkeypatch.setattr(LateMark, "hold_computation", lambda self: None)


def frees_a_slot_too_early(monkeypatch):
    use = SlotRing.use

    def use_and_send_the_next(self, layer, *, backward):
        views = use(self, layer, backward=backward)
        for target in views.values():
            spoil(target)  # the next layer is on its way into the same slot
        return views

    monkeypatch.setattr(SlotRing, "use", use_and_send_the_next)


def brings_the_wrong_layer(monkeypatch):
    fetch = SlotRing._fetch

    def fetch_another(self, layer, wanted, backward):
        slot = fetch(self, layer, wanted, backward)
        wrong = self._flats[layer - 1].copies_to(slot.memory)
        slot.arrival = self._arena.bring(wrong, PASSED)
        return slot

    monkeypatch.setattr(SlotRing, "_fetch", fetch_another)


def forgets_to_wait_for_gradients(monkeypatch):
    monkeypatch.setattr(LayerStream, "_wait_for_gradients", lambda *_: None)


def loses_gradients(monkeypatch):
    monkeypatch.setattr(_Receiver, "__call__", lambda self, gradient: None)


@pytest.mark.parametrize(
    "cheat",
    [
        forgets_to_wait_for_a_layer,
        frees_a_slot_too_early,
        brings_the_wrong_layer,
        forgets_to_wait_for_gradients,
        loses_gradients,
    ],
)
def test_a_late_device_catches_a_stream_that_cheats(cheat, monkeypatch):
    plain, model = make_model(), make_model()
    step(plain)
    cheat(monkeypatch)
    with stream_layers(model, "cpu", arena=LateArena()):
        step(model)
    got = gradients(model)
    assert any(
        got[name] is None or not torch.equal(got[name], expected)
        for name, expected in gradients(plain).items()
    )


def test_weights_compute_in_memory_of_their_own():
    """What is counted on a CPU is what a GPU would move."""
    model = make_model()
    lent = []
    use = SlotRing.use
    with pytest.MonkeyPatch.context() as patch, stream_layers(model, "cpu"):
        patch.setattr(
            SlotRing,
            "use",
            lambda self, layer, *, backward: (
                views := use(self, layer, backward=backward),
                lent.extend(t.untyped_storage().data_ptr() for t in views.values()),
            )[0],
        )
        step(model)
    assert 2 == len(set(lent))
    assert not set(lent) & {p.untyped_storage().data_ptr() for p in model.parameters()}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_three_optimizer_steps_are_bit_identical(accumulation):
    models = [make_model(), make_model()]
    for model, streamed in zip(models, (False, True), strict=True):
        stream = stream_layers(model, "cpu") if streamed else None
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(3):
            for _ in range(accumulation):
                step(model)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        if stream:
            stream.remove()
    assert_equal_tensors(models[1].state_dict(), models[0].state_dict())
    start = make_model().state_dict()
    assert all(not torch.equal(t, start[name]) for name, t in models[1].state_dict().items())


def test_dropout_draws_the_same_numbers_in_backward():
    losses, found = [], []
    for streamed in (False, True):
        model = make_model()
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.5
        stream = stream_layers(model, "cpu") if streamed else None
        torch.manual_seed(7)
        losses.append(step(model))
        found.append(gradients(model))
        assert stream is None or stream.ledger.peak_layers == 2
    assert torch.equal(*losses)
    assert_equal_tensors(found[1], found[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_bit_identical(dtype):
    found = []
    for streamed in (False, True):
        model = make_model()
        if streamed:
            stream_layers(model, "cpu")
        with torch.autocast("cpu", dtype=dtype):
            loss = model(make_ids(), labels=make_ids(), use_cache=False).loss
        loss.backward()
        found.append(gradients(model))
    assert_equal_tensors(found[1], found[0])


def test_without_gradients_every_layer_is_fetched_once():
    model = make_model().eval()
    with torch.no_grad():
        expected = model(make_ids()).logits
    with stream_layers(model, "cpu") as stream, torch.no_grad():
        assert torch.equal(model(make_ids()).logits, expected)
        assert stream.ledger.forward_bytes == LAYERS * slot_bytes(stream)
        assert stream.ledger.backward_bytes == 0
        assert stream.ledger.peak_layers == 2


def test_generation_with_a_cache_is_the_same():
    model = make_model().eval()
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(make_ids(), **settings)
    with stream_layers(model, "cpu"):
        assert torch.equal(model.generate(make_ids(), **settings), expected)


def test_a_cache_asked_for_in_training_is_not_filled_twice():
    plain, model = make_model(), make_model()
    step(plain)
    with stream_layers(model, "cpu"):
        output = model(make_ids(), labels=make_ids(), use_cache=True)
        filled = output.past_key_values.get_seq_length()
        output.loss.backward()
        assert output.past_key_values.get_seq_length() == filled == 0
    assert_equal_tensors(gradients(model), gradients(plain))


def test_padding_and_hidden_states_pass_through():
    mask = torch.ones_like(make_ids())
    mask[0, :4] = 0
    found = []
    for streamed in (False, True):
        model = make_model()
        if streamed:
            stream_layers(model, "cpu")
        found.append(model(make_ids(), attention_mask=mask, output_hidden_states=True))
    assert len(found[0].hidden_states) == len(found[1].hidden_states) == LAYERS + 1
    for got, expected in zip(found[1].hidden_states, found[0].hidden_states, strict=True):
        assert torch.equal(got, expected)


def test_removing_leaves_no_trace():
    model = make_model()
    before = [dict(vars(layer)) for layer in model.model.layers]
    keys = list(model.state_dict())
    identities = [id(p) for p in model.parameters()]
    stream = stream_layers(model, "cpu")
    assert list(model.state_dict()) == keys
    step(model)
    stream.remove()
    stream.remove()
    assert [vars(layer).keys() for layer in model.model.layers] == [d.keys() for d in before]
    assert [id(p) for p in model.parameters()] == identities
    assert all(type(p) is nn.Parameter for p in model.parameters())
    copy.deepcopy(model)


def test_an_error_inside_ends_the_streaming():
    model = make_model()
    with pytest.raises(KeyError), stream_layers(model, "cpu"):
        raise KeyError("stop")
    assert "forward" not in vars(model.model.layers[0])


def test_a_model_saved_while_streamed_is_a_plain_one(tmp_path):
    model = make_model()
    expected = {name: t.clone() for name, t in model.state_dict().items()}
    with stream_layers(model, "cpu"):
        # whoever saves takes views of one storage for tied weights, or writes all of it for each
        storages = [t.untyped_storage() for t in model.state_dict().values()]
        assert len({storage.data_ptr() for storage in storages}) == len(expected)
        sizes = [size_of(t) for t in expected.values()]
        assert [storage.nbytes() for storage in storages] == sizes
        model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_equal_tensors(loaded.state_dict(), expected)


def test_streaming_twice_is_refused():
    model = make_model()
    with (
        stream_layers(model, "cpu"),
        pytest.raises(EngineError, match="is it streamed already"),
    ):
        stream_layers(model, "cpu")


def test_copying_a_streamed_model_is_refused():
    model = make_model()
    with stream_layers(model, "cpu"), pytest.raises(EngineError, match="cannot be copied"):
        copy.deepcopy(model)


def test_a_second_checkpoint_inside_is_refused():
    model = make_model()
    model.activation_checkpointing_enable()
    with stream_layers(model, "cpu"), pytest.raises(EngineError, match="checkpointing is on"):
        step(model)


def test_beside_an_adapter_only_what_is_frozen_visits():
    model = make_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name)
    with stream_layers(model, "cpu") as stream:
        step(model)
    # what trains is little, as an adapter is, and lives on the device
    assert not stream.ledger.gradient_bytes
    assert stream.ledger.fetches == 2 * LAYERS - 2
    norms = [p for name, p in model.named_parameters() if "norm" in name]
    assert all(p.grad is not None and not p.grad.is_meta for p in norms)
    linear = model.model.layers[0].mlp.up_proj.weight
    assert size_of(linear) < slot_bytes(stream)
    assert linear.grad is None


def test_layers_stay_on_the_host_and_compute_on_the_device():
    """`meta` is another device that every machine has; nothing can come back from it."""
    model = make_model().eval()
    place_for_streaming(model, "meta")
    with stream_layers(model, "meta"), torch.no_grad():
        model.to("meta")  # as a trainer would
        assert {p.device.type for p in model.model.layers.parameters()} == {"cpu"}
        assert model.lm_head.weight.device.type == "meta"
        assert model.model.rotary_emb.inv_freq.device.type == "meta"
        assert model(make_ids().to("meta")).logits.device.type == "meta"
    assert {p.device.type for p in model.model.layers.parameters()} == {"cpu"}


def test_a_new_dtype_reaches_streamed_layers():
    model = make_model()
    with stream_layers(model, "cpu"):
        model.to(torch.bfloat16)
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_placing_keeps_the_identity_of_parameters_and_ties():
    model = make_llama(num_hidden_layers=2)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    parameters = list(model.parameters())
    place_for_streaming(model, "cpu")
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight


SMALL = {"vocab_size": 96, "hidden_size": 32, "num_attention_heads": 4}
HEADS = {"num_key_value_heads": 2, "intermediate_size": 48, "num_hidden_layers": LAYERS}
FAMILIES = {
    "qwen2": Qwen2Config(**SMALL, **HEADS),
    "gemma3": Gemma3TextConfig(**SMALL, **HEADS, head_dim=8, sliding_window=4),
    "gpt2": GPT2Config(vocab_size=96, n_embd=32, n_head=4, n_layer=LAYERS),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_are_bit_identical_too(family):
    found = []
    for streamed in (False, True):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(FAMILIES[family]).train()
        stream = stream_layers(model, "cpu") if streamed else None
        torch.manual_seed(1)
        step(model)
        found.append(gradients(model))
        assert stream is None or stream.ledger.peak_layers == 2
    assert_equal_tensors(found[1], found[0])
