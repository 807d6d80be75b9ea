"""ZeRO-offload for one device: AdamW's states and master weights live, and step, on the host.

Gradients stay on the device while they accumulate, are unscaled and clipped there, come over when
a step is taken, and the new weights go back (ZeRO-Offload, Ren et al. 2021). accelerate offers
this inside FSDP only, and torchao's class knows no clipping; so here it is a plain optimizer around
torch's fused AdamW, which is the fastest on a CPU (performance.md, section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(kw_only=True)
class OffloadLedger:
    """What an offloaded optimizer moved."""

    steps: int = 0
    """Steps taken."""
    gradient_bytes: int = 0
    """Gradients brought to the host, in bytes."""
    weight_bytes: int = 0
    """Weights brought back to the device, in bytes."""


class OffloadedAdamW(torch.optim.Optimizer):
    """AdamW on the host for parameters on any device.

    On a CPU the copies are made all the same, so that what a test counts is what a GPU would move;
    the weights are equal, bit for bit, to those of the optimizer it stands for.

    Args:
        inner: the AdamW it stands for, before its first step; its groups and settings are taken.
    """

    # The inner one takes the loss scale and the overflow flag, as it would by itself: GradScaler
    # then treats both alike, and the learning rate follows the same schedule.
    _step_supports_amp_scaling = True

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.ledger = OffloadLedger()
        groups = [{**group, "params": list(group["params"])} for group in inner.param_groups]
        super().__init__(groups, dict(inner.defaults))
        self._hosts: dict[Tensor, Tensor] = {}
        host_groups = []
        for group in groups:
            hosts = [_host_copy(parameter) for parameter in group["params"]]
            self._hosts.update(zip(group["params"], hosts, strict=True))
            host_groups.append({**group, "params": hosts, "fused": True, "foreach": False})
        self._adam = torch.optim.AdamW(host_groups)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Bring the gradients over, step, and bring the weights back."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, ours in zip(self.param_groups, self._adam.param_groups, strict=True):
            ours.update({k: v for k, v in group.items() if k not in ("params", "fused", "foreach")})
            self._fetch(group["params"])
        _wait(self._hosts)
        for name in ("grad_scale", "found_inf"):
            value = getattr(self, name, None)
            setattr(self._adam, name, value.cpu() if isinstance(value, Tensor) else value)
        self._adam.step()
        for parameter, host in self._hosts.items():
            if host.grad is not None:
                parameter.copy_(host, non_blocking=True)
                self.ledger.weight_bytes += _size(host)
        self.ledger.steps += 1
        return loss

    def _fetch(self, parameters: list[Tensor]) -> None:
        """Start to copy the gradients to the host."""
        for parameter in parameters:
            host = self._hosts[parameter]
            if parameter.grad is None:
                host.grad = None
                continue
            if host.grad is None:
                host.grad = torch.empty_like(host, pin_memory=host.is_pinned())
            host.grad.copy_(parameter.grad, non_blocking=True)
            self.ledger.gradient_bytes += _size(parameter.grad)

    def state_dict(self) -> dict[str, Any]:
        """Return the host's states, in the form of a plain AdamW."""
        return self._adam.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the states; they stay on the host. The weights are taken anew from the model."""
        self._adam.load_state_dict(state_dict)
        for group, ours in zip(self.param_groups, self._adam.param_groups, strict=True):
            group.update({k: v for k, v in ours.items() if k not in ("params", "fused", "foreach")})
        with torch.no_grad():
            for parameter, host in self._hosts.items():
                host.copy_(parameter)

    @property
    def state_bytes(self) -> int:
        """Bytes that the states and the master weights take on the host."""
        tensors = [t for state in self._adam.state.values() for t in state.values()]
        return sum(_size(t) for t in [*tensors, *self._hosts.values()])


def _host_copy(parameter: Tensor) -> Tensor:
    """Return a copy on the host; pinned where the device is a GPU, so that copies do not wait."""
    copy = parameter.detach().to("cpu", copy=True)
    return copy.pin_memory() if parameter.device.type == "cuda" else copy


def _wait(parameters: dict[Tensor, Tensor]) -> None:
    """Wait for the copies of every GPU that holds a parameter."""
    for device in {p.device for p in parameters if p.device.type == "cuda"}:
        torch.cuda.current_stream(device).synchronize()


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
