"""Layers that read the same tensor share one Hessian, and no other layers do."""

import pytest
import torch
from torch import nn

from mudpuppy.quant.hessians import collect_hessians


class Block(nn.Module):
    """Query and key read one tensor; the output layer another; an expert now and then one more."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.o = (nn.Linear(8, 8) for _ in range(3))
        self.expert, self.never = nn.Linear(8, 8), nn.Linear(8, 4)
        self.copies = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        again = x.clone() if self.copies else x
        y = self.o(torch.tanh(self.q(x) + self.k(again)))
        return self.expert(y) if float(x.sum()) > 0 else y


def names_of(block: Block) -> dict[str, nn.Linear]:
    return {name: module for name, module in block.named_modules() if name}


def expected(block: Block, samples, masks) -> dict[str, torch.Tensor]:
    """2 X X^T in float64, with every layer on its own."""
    sums = {name: torch.zeros(8, 8, dtype=torch.float64) for name in names_of(block)}
    for x, mask in zip(samples, masks, strict=True):
        y = torch.tanh(block.q(x) + block.k(x))
        given = {"q": x, "k": x, "o": y}
        if float(x.sum()) > 0:
            given["expert"] = block.o(y)
        for name, rows in given.items():
            kept = rows[mask] if mask is not None else rows.flatten(0, 1)
            sums[name] += 2 * kept.double().T @ kept.double()
    return sums


@pytest.mark.parametrize("copies_from", [None, 0, 1])
@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_every_layer_gets_the_hessian_of_its_own_inputs(copies_from, masked):
    block = Block()
    samples = [torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(s)) for s in range(4)]
    masks = [torch.rand(2, 5) > 0.3 if masked else None for _ in samples]

    def run():
        for place, (x, mask) in enumerate(zip(samples, masks, strict=True)):
            block.copies = copies_from is not None and place >= copies_from
            yield mask
            block(x)

    found = collect_hessians(names_of(block), run)
    assert not any(module._forward_hooks for module in block.modules())
    shares = found.leaders["k"] == "q"
    assert shares == (copies_from is None)
    assert set(found.sums) == {"q", "o", "expert", "never"} | (set() if shares else {"k"})
    for name, total in expected(block, samples, masks).items():
        matrix = found.sums[found.leaders[name]].matrix
        assert torch.allclose(matrix.double(), total, rtol=1e-4, atol=1e-4), name


@torch.no_grad()
def test_layers_that_are_not_called_equally_often_do_not_share():
    block = Block()
    linears = {"q": block.q, "k": block.k}
    x = torch.ones(1, 2, 8)

    def run():
        for place in range(3):
            yield None
            block.q(x)
            if place == 0:
                block.k(x)

    found = collect_hessians(linears, run)
    assert found.leaders == {"q": "q", "k": "k"}
    assert torch.equal(found.sums["q"].matrix, 3 * found.sums["k"].matrix)
