"""Sum the Hessians of the linear layers of one block, once for layers that read the same inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from mudpuppy.quant.gptq_matrix import HessianSum


class _NotShared(Exception):
    """Layers that read the same inputs in the first sample do not in another one."""


class BlockHessians:
    """The Hessians of one block's layers.

    Query, key and value read the same tensor, as gate and up do: their sums are one.
    """

    def __init__(self) -> None:
        self.leaders: dict[str, str] = {}
        """For every layer the one that stands for its inputs, itself perhaps."""
        self.sums: dict[str, HessianSum] = {}
        """The sums of the leaders."""


@torch.no_grad()
def collect_hessians(
    linears: Mapping[str, nn.Linear], run: Callable[[], Iterable[Tensor | None]]
) -> BlockHessians:
    """Run every sample through a block, and sum what its layers read.

    Args:
        linears: layers of the block by name, in the order in which they are quantised.
        run: runs the samples; yields, right before each, its mask: (batch, length), true where
            there is a token, or None where there is no padding.
    """
    try:
        return _collect(linears, run, share=True)
    except _NotShared:
        return _collect(linears, run, share=False)


def _collect(
    linears: Mapping[str, nn.Linear], run: Callable[[], Iterable[Tensor | None]], *, share: bool
) -> BlockHessians:
    listener = _Listener(linears, share=share)
    hooks = [linear.register_forward_hook(listener.hear(name)) for name, linear in linears.items()]
    try:
        for mask in run():
            listener.begin(mask)
    finally:
        for hook in hooks:
            hook.remove()
    return listener.conclude()


class _Listener:
    """Hears what the layers of a block are given."""

    def __init__(self, linears: Mapping[str, nn.Linear], *, share: bool) -> None:
        self._linears = linears
        self._share = share
        self._found = BlockHessians()
        self._given: dict[str, Tensor] = {}
        self._calls: Counter[str] = Counter()
        self._mask: Tensor | None = None

    def begin(self, mask: Tensor | None) -> None:
        """Note that the next sample begins."""
        self._mask = mask
        self._given.clear()

    def hear(self, name: str) -> Callable[..., None]:
        """Return the hook of a layer."""

        def add(_: nn.Module, args: tuple[Tensor, ...], __: Tensor) -> None:
            inputs = args[0]
            self._calls[name] += 1
            leader = self._found.leaders.get(name) or self._find_leader(name, inputs)
            if leader != name:
                if self._given.get(leader) is not inputs:
                    raise _NotShared
                return
            self._given[name] = inputs
            # padding says nothing about the data; an expert's inputs have lost the batch's shape
            is_padded = self._mask is not None and inputs.shape[:2] == self._mask.shape
            self._found.sums[name].add(inputs[self._mask] if is_padded else inputs)

        return add

    def _find_leader(self, name: str, inputs: Tensor) -> str:
        """Choose, at the first call of a layer, the one that stands for its inputs."""
        same = [one for one, given in self._given.items() if given is inputs and self._share]
        leader = same[0] if same else name
        self._found.leaders[name] = leader
        if leader == name:
            linear = self._linears[name]
            self._found.sums[name] = HessianSum(linear.in_features, linear.weight.device)
        return leader

    def conclude(self) -> BlockHessians:
        """Return the sums.

        Raises:
            _NotShared: a layer was not called as often as the one that stands for it.
        """
        for name, linear in self._linears.items():
            leader = self._found.leaders.setdefault(name, name)
            if leader != name and self._calls[leader] != self._calls[name]:
                raise _NotShared
            if leader == name and name not in self._found.sums:  # an expert that nothing reached
                total = HessianSum(linear.in_features, linear.weight.device)
                self._found.sums[name] = total
        return self._found
