"""How far a quantised model's predictions lie from the full model's, beside round-to-nearest.

Held-out samples walk through the blocks three times: with the full weights, with GPTQ's, and with
every weight on the nearest level of its own grid. So no second model is ever in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from mudpuppy.quant.block_walk import BlockWalk, Inputs, Route
from mudpuppy.quant.gptq_grid import GptqConfig
from mudpuppy.quant.gptq_matrix import round_to_nearest
from mudpuppy.quant.hidden_store import HiddenStore, Slot

CHUNK = 256
"""Positions whose logits are compared at a time."""


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """Mean KL divergence, in nats a token, of predictions from those of the full model."""

    samples: int
    """Held-out samples."""
    tokens: int
    """Their positions."""
    gptq: float
    """Of the model that GPTQ made."""
    rtn: float
    """Of the model that rounding to nearest makes on the same kind of grid."""


@dataclass
class _Walking:
    """One held-out sample on its three ways."""

    route: Route
    full: Slot
    gptq: Slot
    rtn: Slot


class HeldOut:
    """Samples that nothing is calibrated on.

    Args:
        samples: as the model's forward takes them.
    """

    def __init__(self, samples: Sequence[Inputs]) -> None:
        self._samples = samples
        self._walking: list[_Walking] = []
        self.divergence: Divergence | None = None
        """What came out, once the walk is over; None where there are no samples."""

    def enter(self, walk: BlockWalk, store: HiddenStore) -> None:
        """Bring every sample to the first block."""
        for route, hidden in walk.enter(self._samples, is_heard=False):
            slots = [store.place_for(hidden.clone()) for _ in range(3)]
            self._walking.append(_Walking(route, *slots))

    def pass_original(
        self, block: nn.Module, linears: Mapping[str, nn.Linear], index: int, config: GptqConfig
    ) -> None:
        """Take the full way and the rounded one through a block that is not quantised yet.

        Args:
            block: the block.
            linears: its layers that will be quantised.
            index: its number.
            config: the grid.
        """
        if not self._walking:
            return
        for one in self._walking:
            one.full.put(one.route.run(block, index, one.full.get()))
        with ExitStack() as undoing:
            for linear in linears.values():
                undoing.callback(_set_weight, linear, linear.weight.data)
                _set_weight(linear, round_to_nearest(linear.weight, config))
            for one in self._walking:
                one.rtn.put(one.route.run(block, index, one.rtn.get()))

    def pass_quantised(self, block: nn.Module, index: int) -> None:
        """Take GPTQ's way through a block that is quantised."""
        for one in self._walking:
            one.gptq.put(one.route.run(block, index, one.gptq.get()))

    def leave(self, walk: BlockWalk) -> None:
        """Compare the predictions at the end of the three ways."""
        sums, tokens = [0.0, 0.0], 0
        for one in self._walking:
            mask = one.route.mask
            full = walk.leave(one.route, one.full.get())
            kept = mask if mask is not None else full.new_ones(full.shape[:2]).bool()
            tokens += int(kept.sum())
            for place, slot in enumerate((one.gptq, one.rtn)):
                logits = walk.leave(one.route, slot.get())
                sums[place] += _divergence(logits[kept], full[kept])
        if tokens:
            gptq, rtn = (total / tokens for total in sums)
            self.divergence = Divergence(
                samples=len(self._walking), tokens=tokens, gptq=gptq, rtn=rtn
            )


def _set_weight(linear: nn.Linear, weight: Tensor) -> None:
    linear.weight.data = weight


def _divergence(found: Tensor, wanted: Tensor) -> float:
    """Return the summed KL divergence of logits (tokens, vocabulary) from the wanted ones."""
    total = 0.0
    for start in range(0, len(found), CHUNK):
        logs = F.log_softmax(found[start : start + CHUNK].double(), dim=-1)
        expected = F.log_softmax(wanted[start : start + CHUNK].double(), dim=-1)
        total += float(F.kl_div(logs, expected, log_target=True, reduction="sum"))
    return total
