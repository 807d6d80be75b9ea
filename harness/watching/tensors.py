"""Hashes of a model's tensors, whole also where they are sharded over processes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

HEADS = ("score.", "classifier.", "classification_head.")
"""Heads that a base for generation lacks: a reward method trains them beside its adapter."""


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor that FSDP may have sharded; every process must ask in the same order."""
    gather: Any = getattr(tensor, "full_tensor", None)
    full: torch.Tensor = tensor.detach() if gather is None else gather().detach()
    return full


def hash_tensors(model: nn.Module) -> dict[str, str]:
    """Return a hash of the bytes of every parameter and persistent buffer."""
    persistent = set(model.state_dict())
    tensors: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors |= {n: b for n, b in model.named_buffers() if n in persistent}
    return {name: hash_tensor(whole(tensor)) for name, tensor in tensors.items()}


def hash_tensor(tensor: torch.Tensor) -> str:
    """Return a hash of the tensor's bytes, type and shape."""
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    digest = hashlib.blake2b(flat.numpy().tobytes(), digest_size=16)
    digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    return digest.hexdigest()


def is_sharded(model: nn.Module) -> bool:
    """Return whether any parameter is spread over processes."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def foreign_names(names: Iterable[str], *, has_head: bool) -> tuple[str, ...]:
    """Return the trainable tensors that belong to the base and not to an adapter.

    Args:
        names: names of trainable tensors under a method that trains an adapter.
        has_head: whether the method makes a head of its own, which is saved with the adapter.
    """
    return tuple(sorted(name for name in names if not _is_adapters(name, has_head)))


def _is_adapters(name: str, has_head: bool) -> bool:
    if ".lora_" in name:
        return True
    if not has_head or ".modules_to_save." not in name:
        return False
    return any(f".{head}" in name for head in HEADS)
