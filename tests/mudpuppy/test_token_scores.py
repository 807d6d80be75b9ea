"""Scores of single tokens are what plain torch computes of whole logits, chunk by chunk."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mudpuppy import token_scores
from mudpuppy.tiny import resolve_model
from mudpuppy.token_scores import Head, Reference, add_token_scores, head_of, score_tokens


def problem(tokens=23, vocabulary=37, width=8, dtype=torch.float32):
    torch.manual_seed(3)
    hidden = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, width, dtype=dtype, requires_grad=True)
    bias = torch.randn(vocabulary, dtype=dtype, requires_grad=True)
    before = torch.randn(tokens, width, dtype=dtype)
    return hidden, weight, bias, before, torch.randint(vocabulary, (tokens,))


def plain(hidden, weight, bias, scale, softcap):
    logits = F.linear(hidden, weight, bias) * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch):
    monkeypatch.setattr(token_scores, "CHUNK_LOGITS", 1)
    monkeypatch.setattr(token_scores, "MIN_CHUNK_TOKENS", 5)


@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.25, 3.0)])
def test_scores_and_gradients_are_those_of_whole_logits_in_fp64(scale, softcap):
    hidden, weight, bias, before, labels = problem()
    head = Head(weight=weight, bias=bias, scale=scale, softcap=softcap)
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight, bias)]
    factors = torch.linspace(-2, 1, len(labels))

    other = Head(weight=weight.detach() * 1.5, bias=bias.detach(), scale=scale, softcap=softcap)
    ours = score_tokens(head, hidden, labels, Reference(before, other))
    ((factors * ours.nll).sum() + (factors * ours.kl).sum()).backward()

    now = plain(*exact, scale, softcap)
    was = plain(before.double(), exact[1] * 1.5, exact[2], scale, softcap).detach()
    nll = F.cross_entropy(now, labels, reduction="none")
    kl = F.kl_div(now.log_softmax(-1), was.softmax(-1), reduction="none").sum(-1)
    ((factors * nll).sum() + (factors * kl).sum()).backward()
    torch.testing.assert_close(ours.nll.double(), nll, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.kl.double(), kl, rtol=1e-4, atol=1e-5)
    wanted = F.cross_entropy(was, labels, reduction="none")
    torch.testing.assert_close(ours.reference_nll.double(), wanted, rtol=1e-5, atol=1e-5)
    for one, other in zip((hidden, weight, bias), exact, strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-4, atol=1e-4)


def test_a_model_is_at_no_distance_from_itself():
    hidden, weight, _, _, labels = problem()

    head = Head(weight=weight)
    scores = score_tokens(head, hidden, labels, Reference(hidden.detach(), head))
    scores.kl.sum().backward()

    assert bool((scores.kl == 0).all())
    assert torch.equal(scores.nll.detach(), scores.reference_nll)
    assert float(hidden.grad.abs().max()) < 1e-6


def test_no_labels_cost_nothing():
    hidden, weight, _, before, labels = problem()

    head = Head(weight=weight)
    scores = score_tokens(head, hidden[:0], labels[:0], Reference(before[:0], head))

    assert [(0,)] * 3 == [tuple(x.shape) for x in (scores.nll, scores.kl, scores.reference_nll)]


class LargestTensor(TorchDispatchMode):
    """Remembers how many elements the largest result had."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_no_tensor_is_as_large_as_all_logits():
    hidden, weight, _, before, labels = problem(tokens=64, vocabulary=501)

    head = Head(weight=weight)
    with LargestTensor() as seen:
        score_tokens(head, hidden, labels, Reference(before, head)).kl.sum().backward()

    assert seen.elements < 10 * 501


@pytest.mark.parametrize("has_plain_head", [True, False])
def test_a_model_answers_with_scores_where_they_are_asked_for(monkeypatch, has_plain_head):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(resolve_model("tiny:llama")).eval()
    monkeypatch.setattr(token_scores, "has_plain_head", lambda model: has_plain_head)
    ids = torch.arange(20).reshape(2, 10) + 5
    labels = ids.clone()
    labels[0, :4] = -100
    wanted = F.cross_entropy(
        model(input_ids=ids).logits[:, :-1].reshape(18, -1),
        labels[:, 1:].reshape(-1),
        reduction="none",
    )[labels[:, 1:].reshape(-1) != -100]
    add_token_scores(model)

    hidden = model(input_ids=ids, labels=labels, tokens="hidden").hidden
    reference = Reference(hidden.detach(), head_of(model))
    scores = model(input_ids=ids, labels=labels, tokens="scores", reference=reference)

    torch.testing.assert_close(scores.nll, wanted, rtol=1e-5, atol=1e-5)
    assert float(scores.kl.detach().abs().max()) == 0.0
    assert model(input_ids=ids).logits.shape[:2] == (2, 10)
