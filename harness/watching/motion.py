"""Watches which tensors move, and which the optimizer found a gradient for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from harness.observations import ParameterMotion
from harness.watching.tensors import foreign_names, hash_tensor, hash_tensors, is_sharded, whole

OF_RANGES = (".ranges.", ".fp8_history.")
"""Parts of the names of what rounding remembers of earlier steps; gone when training ends."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"


class MotionWatcher:
    """Compares a model before the first and after the last step."""

    def __init__(self, model: Any, *, trains_adapter: bool, has_head: bool) -> None:
        """Hash every tensor and listen to optimizers.

        Args:
            model: the model that is about to be trained.
            trains_adapter: whether only adapter tensors may train.
            has_head: whether the method also trains a head of its own.
        """
        self._model = model
        self._before = {n: held for n, held in hash_tensors(model).items() if is_of_model(n)}
        self._trainable = {
            n for n, p in model.named_parameters() if p.requires_grad and is_of_model(n)
        }
        self._unread = unread_names(model) & self._trainable
        self._trainable -= self._unread  # nothing reads them, so they must not move
        self._foreign = foreign_names(self._trainable, has_head=has_head) if trains_adapter else ()
        self._rounded = tuple(
            n for n, p in model.named_parameters() if p.requires_grad and p.dtype != torch.float32
        )
        self._touched: set[str] = set()
        self._updates = 0
        self.optimizer = ""
        self._names: dict[int, str] = {}
        self._hook = register_optimizer_step_pre_hook(self._see_step)

    def conclude(self, model: Any) -> ParameterMotion:
        """Stop listening and compare."""
        self._hook.remove()
        after = hash_tensors(model)
        moved = {name for name in self._before if after.get(name) != self._before[name]}
        return ParameterMotion(
            trainable=len(self._trainable),
            frozen=len(self._before) - len(self._trainable),
            still=tuple(sorted(self._trainable - moved)),
            frozen_moved=tuple(sorted(moved - self._trainable)),
            foreign_trainable=self._foreign,
            without_gradient=tuple(sorted(self._trainable - self._touched)),
            sharded=is_sharded(model),
            optimizer=self.optimizer,
            unread=len(self._unread),
            rounded=self._rounded,
            updates=self._updates,
        )

    def _see_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Note the parameters that come with a gradient other than zero.

        A fused optimizer is asked even where gradients overflowed, and leaves that step out.
        """
        del args, kwargs
        if not self.optimizer:  # by now they are sharded, where they are to be
            self.optimizer = type(optimizer).__name__
            self._names = {id(p): n for n, p in self._model.named_parameters()}
        given = [p.grad for group in optimizer.param_groups for p in group["params"]]
        if not all(bool(whole(grad).isfinite().all()) for grad in given if grad is not None):
            return
        self._updates += 1
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = self._names.get(id(parameter))
                if name is None or parameter.grad is None:
                    continue
                if bool(whole(parameter.grad).count_nonzero()):
                    self._touched.add(name)


def is_of_model(name: str) -> bool:
    """Return whether a tensor is one of the model's, and not of a range that training keeps."""
    return not any(part in name for part in OF_RANGES)


def unread_names(model: Any) -> set[str]:
    """Return the tensors of a vision tower behind the layer that the language model reads.

    LLaVA reads the hidden states of one layer, most often the last but one: what lies behind it
    gets no gradient by the architecture.
    """
    layer = getattr(model.config, "vision_feature_layer", None)
    if not isinstance(layer, int):
        return set()
    read = layer if layer >= 0 else int(model.config.vision_config.num_hidden_layers) + 1 + layer
    unread = set()
    for name, _ in model.named_parameters():
        _, is_vision, inside = name.partition("vision_tower.")
        _, is_layer, rest = inside.partition("encoder.layers.")
        is_behind = bool(is_layer) and int(rest.partition(".")[0]) >= read
        if is_vision and (is_behind or "post_layernorm" in inside):
            unread.add(name)
    return unread


def starts_from(model: Any, adapter: Path) -> bool:
    """Return whether the model holds exactly the tensors of an adapter that it is to continue."""
    from safetensors.torch import load_file

    saved = load_file(str(adapter / ADAPTER_WEIGHTS))
    own = {
        name.replace(".default", "").replace(".modules_to_save", ""): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    return set(own) == set(saved) and all(
        hash_tensor(own[name]) == hash_tensor(saved[name].to(own[name].dtype)) for name in saved
    )


def peak_bytes() -> int:
    """Return the largest resident memory that this process has had."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident_bytes() -> int:
    """Return the resident memory of this process; 0 where the system does not say."""
    path = Path("/proc/self/statm")
    if not path.is_file():
        return 0
    import os

    return int(path.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def device_peak_bytes() -> int:
    """Return the largest device memory that tensors have taken; 0 without a device."""
    cuda: Any = torch.cuda
    return int(cuda.max_memory_allocated()) if cuda.is_initialized() else 0
