"""The chunked loss is the plain one, and its memory does not grow with vocabulary x tokens."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mudpuppy import chunked_loss
from mudpuppy.chunked_loss import chunked_cross_entropy


def plain(hidden, weight, labels, *, bias=None, scale=1.0, softcap=None):
    logits = F.linear(hidden, weight, bias).float() * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")


def problem(tokens=23, vocabulary=37, width=8, masked=0.6, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    hidden = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, width, dtype=dtype, requires_grad=True)
    bias = torch.randn(vocabulary, dtype=dtype, requires_grad=True)
    labels = torch.randint(vocabulary, (tokens,))
    labels[torch.rand(tokens) < masked] = -100
    return hidden, weight, bias, labels


def loss_and_grads(function, tensors, labels, **options):
    hidden, weight, bias = tensors
    for tensor in tensors:
        tensor.grad = None
    loss = function(hidden, weight, labels, bias=bias, **options)
    (loss / 7).backward()
    return [loss.detach(), *(tensor.grad.clone() for tensor in tensors)]


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch):
    monkeypatch.setattr(chunked_loss, "CHUNK_LOGITS", 1)
    monkeypatch.setattr(chunked_loss, "MIN_CHUNK_TOKENS", 3)


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("masked", [0.0, 0.6])
def test_loss_and_gradients_equal_the_plain_ones(scale, softcap, masked):
    *tensors, labels = problem(masked=masked)

    ours = loss_and_grads(chunked_cross_entropy, tensors, labels, scale=scale, softcap=softcap)
    expected = loss_and_grads(plain, tensors, labels, scale=scale, softcap=softcap)

    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_autocast_computes_products_in_its_type(dtype, tolerance):
    *tensors, labels = problem()

    with torch.autocast("cpu", dtype=dtype):
        ours = loss_and_grads(chunked_cross_entropy, tensors, labels)
        expected = loss_and_grads(plain, tensors, labels)

    assert [torch.float32] * 4 == [one.dtype for one in ours]
    for mine, theirs in zip(ours, expected, strict=True):
        assert float((mine - theirs).norm() / theirs.norm()) < tolerance


def test_half_weights_keep_their_type():
    *tensors, labels = problem(dtype=torch.bfloat16)

    ours = loss_and_grads(chunked_cross_entropy, tensors, labels)
    expected = loss_and_grads(plain, tensors, labels)

    assert torch.float32 == ours[0].dtype
    for mine, theirs in zip(ours[1:], expected[1:], strict=True):
        assert theirs.dtype == mine.dtype
        assert float((mine - theirs).float().norm() / theirs.float().norm()) < 2e-2


def test_a_tied_weight_gets_both_gradients():
    *tensors, labels = problem(masked=0.0)
    weight = tensors[1]
    ids = torch.randint(37, (23,))

    def tied(function):
        weight.grad = None
        function(F.embedding(ids, weight).tanh(), weight, labels).backward()
        return weight.grad.clone()

    torch.testing.assert_close(tied(chunked_cross_entropy), tied(plain), rtol=1e-6, atol=2e-6)


def test_a_frozen_head_gets_no_gradient_and_costs_none():
    hidden, weight, _, labels = problem()
    weight.requires_grad_(False)

    chunked_cross_entropy(hidden, weight, labels).backward()

    assert weight.grad is None
    assert hidden.grad is not None


def test_no_label_gives_a_differentiable_zero():
    hidden, weight, _, labels = problem(masked=1.1)

    loss = chunked_cross_entropy(hidden, weight, labels)
    loss.backward()

    assert 0.0 == loss.item()
    assert 0.0 == hidden.grad.abs().sum().item()


def test_without_gradients_none_is_made():
    hidden, weight, _, labels = problem()

    with torch.no_grad(), Largest() as seen:
        loss = chunked_cross_entropy(hidden, weight, labels)

    assert not loss.requires_grad
    assert weight.shape not in seen.made_shapes


class Largest(TorchDispatchMode):
    """Records the size of every tensor that is made."""

    def __init__(self):
        super().__init__()
        self.largest = 0
        self.made_shapes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, torch.Tensor):
                self.largest = max(self.largest, one.numel())
                if function is torch.ops.aten.zeros_like.default:
                    self.made_shapes.add(one.shape)
        return made


def largest(function, tokens):
    hidden, weight, _, labels = problem(tokens=tokens, vocabulary=512, width=8, masked=0.0)
    with Largest() as seen:
        function(hidden, weight, labels).backward()
    return seen.largest


def test_memory_does_not_grow_with_vocabulary_times_tokens():
    head = 512 * 8

    assert largest(chunked_cross_entropy, 32) == largest(chunked_cross_entropy, 512) == head
    assert largest(plain, 512) == 512 * 512
