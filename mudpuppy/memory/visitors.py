"""Which tensors of a layer visit the device, which live there, and how both stay where they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mudpuppy.quant.blocks import find_decoder_layers


def choose_visitors(
    model: nn.Module, layers: Sequence[nn.Module], device: torch.device
) -> list[dict[str, Tensor]]:
    """Return what is streamed of each layer, by name, and put the rest on the device.

    Where some weights of the layers are frozen, those are streamed, packed ones as they are, and
    what trains (an adapter) lives on the device. A tensor that two layers share, or a layer and the
    rest of the model, lives there too: the copies in two slots would learn apart.
    """
    uses = _count_uses(model, layers)
    are_all_trained = all(p.requires_grad for layer in layers for p in layer.parameters())
    chosen = []
    for layer in layers:
        found = {**_parameters_of(layer), **_packed_of(layer)}
        visits = {
            name: t
            for name, t in found.items()
            if t.numel() and uses[id(t)] == 1 and (are_all_trained or not t.requires_grad)
        }
        _move_rest(layer, {id(t) for t in visits.values()}, device)
        chosen.append(visits)
    return chosen


def _parameters_of(layer: nn.Module) -> dict[str, Tensor]:
    return dict(layer.named_parameters())


def _packed_of(layer: nn.Module) -> dict[str, Tensor]:
    """Return the packed weights of 4-bit layers: the only buffers as large as weights are.

    Other buffers are few, and some change while they compute, which a copy in a slot would lose.
    """
    return {
        f"{name}.{part}" if name else part: buffer
        for name, module in layer.named_modules()
        if getattr(module, "is_packed", False)
        for part, buffer in module.named_buffers(recurse=False)
    }


def _count_uses(model: nn.Module, layers: Sequence[nn.Module]) -> Counter[int]:
    """Return in how many layers, or beside them, each tensor is."""
    inside = {module for layer in layers for module in layer.modules()}
    uses: Counter[int] = Counter()
    for layer in layers:
        uses.update({id(t) for t in [*layer.parameters(), *layer.buffers()]})
    beside = [module for module in model.modules() if module not in inside]
    uses.update({id(p) for module in beside for p in module.parameters(recurse=False)})
    return uses


@torch.no_grad()
def _move_rest(layer: nn.Module, visiting: set[int], device: torch.device) -> None:
    for parameter in layer.parameters():
        if id(parameter) not in visiting:
            parameter.data = parameter.data.to(device)
    for module in layer.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if id(buffer) not in visiting:
                module._buffers[name] = buffer.to(device)


def keep_at_home(layer: nn.Module, settle: Callable[[], None]) -> Callable[..., nn.Module]:
    """Return an `_apply` for `layer` that lets a new dtype through, but no other device.

    Trainers call `model.to(device)`, which would bring every layer to the device for good.

    Args:
        layer: a streamed layer.
        settle: called before its weights are touched.
    """
    apply: Callable[..., Any] = layer._apply

    def apply_at_home(fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        def cast(tensor: Tensor) -> Tensor:
            # an empty tensor tells the dtype without moving a byte
            return tensor.to(fn(tensor.new_empty(0)).dtype)

        settle()
        result: nn.Module = apply(cast, recurse)
        return result

    return apply_at_home


@torch.no_grad()
def place_for_streaming(model: nn.Module, device: torch.device | str) -> None:
    """Put the parameters of the decoder layers on the host, and everything else on `device`.

    Parameters keep their identity: an optimizer made before still sees them. Pinned memory comes
    with the stream, a layer at a time.
    """
    target = torch.device(device)
    layers = find_decoder_layers(model).layers
    inside = set(layers.modules())
    for module in model.modules():
        if module not in inside:
            module._apply(lambda tensor: tensor.to(target), recurse=False)  # type: ignore[no-untyped-call]
        elif getattr(module, "is_packed", False):
            continue  # packed weights are buffers, and visit like parameters
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(target)
    for parameter in layers.parameters():
        parameter.data = parameter.data.cpu()
