"""Packed documents get what they get alone: logits, loss and gradients, in every family."""

from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mudpuppy.attention import documents
from mudpuppy.attention.documents import NAME, attending_by_document, document_attention
from mudpuppy.errors import EngineError, ModelError
from mudpuppy.tiny.corpus import conversations
from mudpuppy.tiny.families import make_family_model
from mudpuppy.tiny.tokenizer import train_tokenizer

LENGTHS = (40, 40, 9, 5, 5, 1)
"""The first are longer than the window of 32 that Gemma has here."""
FAMILIES = (
    "llama",
    "llama-tied",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "phi3",
    "mistral",
    "mixtral",
)


@cache
def tokenizer():
    texts = [message["content"] for messages in conversations() for message in messages]
    return train_tokenizer(texts, 512, extra_tokens=("<|endoftext|>",))


@pytest.fixture
def build():
    def make(family: str, **changes):
        torch.manual_seed(3)
        model = make_family_model(family, tokenizer())
        for name, value in changes.items():
            setattr(model.config, name, value)
        return model

    return make


def make_documents(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(400, (1, length), generator=generator) for length in LENGTHS]


def row_of(parts: list[torch.Tensor]) -> dict:
    return {
        "input_ids": torch.cat(parts, dim=1),
        "position_ids": torch.cat([torch.arange(part.shape[1]) for part in parts])[None],
        "document_lengths": tuple(part.shape[1] for part in parts),
        "use_cache": False,
    }


def next_token_loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_the_documents_alone(build, family):
    model = build(family)
    parts = make_documents()
    alone = [model(input_ids=part, use_cache=False).logits for part in parts]
    sum(next_token_loss(one, part) for one, part in zip(alone, parts, strict=True)).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    with attending_by_document(model):
        packed = model(**row_of(parts)).logits.split(LENGTHS, dim=1)
        sum(next_token_loss(one, part) for one, part in zip(packed, parts, strict=True)).backward()

    for mine, theirs in zip(packed, alone, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    for name, theirs in expected.items():
        mine = model.get_parameter(name).grad
        assert float((mine - theirs).norm() / theirs.norm().clamp(min=1e-6)) < 1e-5, name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("training", [True, False])
def test_a_perturbed_document_moves_no_other_one(build, family, training):
    model = build(family).train(training)
    parts = make_documents()
    other = [parts[0], (parts[1] + 1) % 400, *parts[2:]]

    with attending_by_document(model), torch.no_grad():
        before = model(**row_of(parts)).logits.split(LENGTHS, dim=1)
        after = model(**row_of(other)).logits.split(LENGTHS, dim=1)

    assert not torch.equal(before[1], after[1])
    for index in (0, 2, 3, 4, 5):
        if family == "mixtral":  # experts compute the tokens that they get, in products of any size
            torch.testing.assert_close(before[index], after[index], rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(before[index], after[index])


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_recomputed_activations_give_the_same_gradients(build, family):
    model = build(family).train()
    parts = make_documents()

    def gradients() -> dict:
        model.zero_grad()
        row = row_of(parts)
        next_token_loss(model(**row).logits, row["input_ids"]).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    with attending_by_document(model):
        expected = gradients()
        model.activation_checkpointing_enable({"use_reentrant": False})
        again = gradients()

    for name, theirs in expected.items():
        torch.testing.assert_close(again[name], theirs, rtol=1e-6, atol=1e-7)


def test_its_own_attention_is_back_and_the_name_is_never_saved(build, tmp_path):
    model = build("gemma2")
    before = model.config._attn_implementation
    parts = make_documents()
    expected = model(input_ids=parts[0], use_cache=False).logits

    with attending_by_document(model):
        assert NAME == model.config._attn_implementation
        model.config.save_pretrained(tmp_path)
        padded = {"input_ids": parts[0], "attention_mask": torch.ones_like(parts[0])}
        inside = model(**padded, use_cache=False).logits
    with pytest.raises(RuntimeError), attending_by_document(model):
        raise RuntimeError

    assert NAME not in (tmp_path / "config.json").read_text()
    assert before == model.config._attn_implementation
    torch.testing.assert_close(inside, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(expected, model(input_ids=parts[0], use_cache=False).logits)


class Squares(TorchDispatchMode):
    """Records the shape of every tensor that could be a mask."""

    def __init__(self):
        super().__init__()
        self.sides = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.dim() >= 2:
            self.sides.add(made.shape[-2:])
        return made


def test_no_mask_as_large_as_the_row_is_made(build):
    model = build("gemma3")
    row = row_of(make_documents())
    total = sum(LENGTHS)

    with attending_by_document(model), Squares() as ours:
        model(**row)
    del row["document_lengths"]
    with Squares() as theirs:
        model(**row)

    assert (total, total) not in ours.sides
    assert (total, total) in theirs.sides


def test_models_that_carry_a_state_are_refused_by_name(build):
    model = build("qwen3")
    model.config.layer_types = ["full_attention", "linear_attention"]

    with pytest.raises(ModelError, match="qwen3: it has layers of type linear_attention"):
        attending_by_document(model).__enter__()
    assert NAME != model.config._attn_implementation


def test_a_model_that_leaks_is_found_by_trying_it(build, monkeypatch):
    model = build("llama")
    monkeypatch.setattr(
        documents, "groupby", lambda lengths: [(sum(lengths), [0])], raising=True
    )  # attention over the whole row

    with pytest.raises(ModelError, match="moves its logits"):
        attending_by_document(model).__enter__()


def test_a_model_that_ignores_positions_is_found_by_trying_it(build):
    model = build("llama")
    rotary = model.model.rotary_emb
    ask = rotary.forward
    rotary.forward = lambda hidden, position_ids: ask(
        hidden, torch.arange(position_ids.shape[1])[None] ** 2
    )

    with pytest.raises(ModelError, match="moves its logits"):
        attending_by_document(model).__enter__()


def test_models_of_images_are_refused_by_name():
    names = SimpleNamespace(model_type="llava", get_text_config=lambda: SimpleNamespace())

    with pytest.raises(ModelError, match="llava: it is no model of texts alone"):
        attending_by_document(SimpleNamespace(config=names)).__enter__()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"document_lengths": (3, 3)}, "do not make up"),
        ({"document_lengths": None}, "do not make up"),
        ({"s_aux": torch.zeros(2)}, "s_aux"),
        ({"is_causal": False}, "later tokens"),
        ({"sliding_window": 4}, "a window"),
    ],
)
def test_what_it_cannot_compute_is_refused(changes, said):
    tensor = torch.zeros(1, 2, 5, 4)
    mask = documents.DocumentMask(window=None)
    options = {"document_lengths": (3, 2), **changes}

    with pytest.raises(EngineError, match=said):
        document_attention(SimpleNamespace(), tensor, tensor, tensor, mask, **options)
