"""An optimizer on the host: the same bits as the one it stands for, and every byte counted."""

import copy

import pytest
import torch
from torch import nn

from mudpuppy.memory.offload import OffloadedAdamW


def pair():
    torch.manual_seed(0)
    left = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    right = copy.deepcopy(left)
    return left, right


def groups(model):
    decayed = [p for p in model.parameters() if p.ndim > 1]
    return [
        {"params": decayed, "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]


def adam(model):
    return torch.optim.AdamW(groups(model), lr=0.05, fused=True)


def train(model, optimizer, steps, *, scaler=None):
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        loss = model(torch.randn(4, 8)).square().mean()
        if scaler is None:
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            if step == 1:
                model[0].weight.grad[0, 0] = float("inf")
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
        schedule.step()


def assert_equal(left, right):
    assert all(
        torch.equal(a, b) for a, b in zip(left.parameters(), right.parameters(), strict=True)
    )


@pytest.mark.parametrize("is_scaled", [False, True])
def test_it_equals_adamw_bit_for_bit(is_scaled):
    left, right = pair()
    start = copy.deepcopy(left)
    scalers = [torch.amp.GradScaler("cpu") if is_scaled else None for _ in range(2)]
    train(left, adam(left), 4, scaler=scalers[0])
    train(right, OffloadedAdamW(adam(right)), 4, scaler=scalers[1])

    assert_equal(left, right)
    assert not torch.equal(start[0].weight, left[0].weight)
    if is_scaled:
        assert scalers[0].get_scale() == scalers[1].get_scale() < 65536.0


def test_bytes_are_counted():
    _, model = pair()
    model[1].requires_grad_(False)
    optimizer = OffloadedAdamW(adam(model))
    train(model, optimizer, 3)
    trained = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)

    assert 3 == optimizer.ledger.steps
    assert 3 * trained == optimizer.ledger.gradient_bytes == optimizer.ledger.weight_bytes
    assert 2 * trained < optimizer.state_bytes


def test_its_state_is_that_of_a_plain_adamw():
    left, right = pair()
    plain, ours = adam(left), OffloadedAdamW(adam(right))
    train(left, plain, 2)
    train(right, ours, 2)
    other = copy.deepcopy(right)
    again = OffloadedAdamW(adam(other))
    again.load_state_dict(copy.deepcopy(plain.state_dict()))
    train(left, plain, 2)
    train(other, again, 2)

    assert_equal(left, other)


def test_nothing_of_it_lies_on_the_device_of_the_parameters():
    """The model's tensors are not the ones that the optimizer holds its states for."""
    _, model = pair()
    optimizer = OffloadedAdamW(adam(model))
    train(model, optimizer, 1)

    assert not optimizer.state
    assert all(t.device.type == "cpu" for s in optimizer._adam.state.values() for t in s.values())
