"""Make a model whole again that FSDP has sharded over the processes (torch's fully_shard)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from mudpuppy import team
from mudpuppy.errors import EngineError


@torch.no_grad()
def gather_shards(model: nn.Module) -> None:
    """Give the first process the whole weights on the host, and take FSDP's hooks and classes away.

    All processes must call it, tensor by tensor. Tied weights stay tied. The other processes are
    left with tensors of the same shapes on the device `meta`, which take no memory.

    Raises:
        EngineError: nothing was sharded, so the run was another than was asked for.
    """
    whole: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if isinstance(parameter, DTensor):
                if id(parameter) not in whole:
                    gathered = parameter.full_tensor()
                    gathered = gathered.cpu() if team.is_first() else gathered.to("meta")
                    whole[id(parameter)] = nn.Parameter(gathered, parameter.requires_grad)
                module._parameters[name] = whole[id(parameter)]
    if not whole:
        raise EngineError("no weight was sharded: FSDP was asked for, and did not happen")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            _unwrap(module)


def _unwrap(module: Any) -> None:
    """Give a module its own class back, and remove the hooks that fetch shards."""
    state = module._get_fsdp_state()
    for handle in ("_pre_forward_hook_handle", "_post_forward_hook_handle"):
        getattr(state, handle).remove()
    # fully_shard derives a class from FSDPModule and the module's own
    module.__class__ = type(module).__mro__[2]
