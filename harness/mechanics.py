"""Watches how training computes: in which type, recomputed or not, streamed or not.

A feature that is switched off in silence changes no loss; it shows only here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from harness.observations import Mechanics
from mudpuppy.quant.blocks import find_decoder_layers


class MechanicsWatcher:
    """Listens to one linear layer in the first decoder block."""

    def __init__(self, model: Any) -> None:
        """Hook the first linear layer of the first block."""
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        block = find_decoder_layers(plain).layers[0]
        linear = next(part for part in block.modules() if isinstance(part, nn.Linear))
        self._model = model
        self._calls = 0
        self._batches = 0
        self._counts = self._is_inside = False
        self._dtypes: set[str] = set()
        self._substituted = False
        self._linear = linear
        self._buffer = _first_buffer(linear)
        self._dropouts: set[float] = set()
        # Compiled code cannot hold these functions: it stops for them, and goes on behind.
        uncompiled: Any = torch.compiler.disable
        self._hooks = [
            linear.register_forward_hook(uncompiled(self._see_linear)),
            model.register_forward_pre_hook(uncompiled(self._see_start)),
            model.register_forward_hook(uncompiled(self._see_end)),
        ]

    def _see_start(self, model: nn.Module, args: Any) -> None:
        """Note whether a pass trains; those of a reference and of generation do not."""
        del args
        if model is self._model:  # a copy of the model, to compare with, has copies of the hooks
            self._is_inside = True
            self._counts = model.training and torch.is_grad_enabled()
            self._batches += self._counts
            if self._counts and not self._dropouts:
                self._dropouts = _find_dropouts(model)

    def _see_end(self, model: nn.Module, args: Any, output: Any) -> None:
        """Note that the pass is over."""
        del args, output
        self._is_inside = self._is_inside and model is not self._model

    def _see_linear(self, linear: nn.Linear, args: Any, output: torch.Tensor) -> None:
        del args
        # Between two passes comes recomputation, with gradients, or generation, without.
        counts = self._counts if self._is_inside else torch.is_grad_enabled()
        if linear is not self._linear or not self._model.training or not counts:
            return
        self._calls += 1
        self._dtypes.add(str(output.dtype).removeprefix("torch."))
        self._substituted |= self._is_lent(linear)

    def _is_lent(self, linear: nn.Linear) -> bool:
        """Return whether the layer computes with a copy that was fetched for it.

        Such a copy stands in a parameter's place and is none. Packed weights are buffers, of which
        the layer's own were seen before.
        """
        weight = linear._parameters.get("weight")
        if weight is not None:
            return not isinstance(weight, nn.Parameter)
        return _first_buffer(linear) is not self._buffer

    def conclude(self) -> Mechanics | None:
        """Stop listening and return what was seen, or None when nothing was trained."""
        for hook in self._hooks:
            hook.remove()
        if not self._batches:
            return None
        return Mechanics(
            compute_dtypes=tuple(sorted(self._dtypes)),
            calls_per_batch=self._calls / self._batches,
            streamed=self._substituted,
            dropouts=tuple(sorted(self._dropouts)),
        )


def _first_buffer(linear: nn.Linear) -> torch.Tensor | None:
    return next(iter(linear._buffers.values()), None)


def _find_dropouts(model: nn.Module) -> set[float]:
    """Return the shares that adapters drop of their input; 0 where one drops nothing."""
    found = [part for name, part in model.named_modules() if ".lora_dropout." in name]
    return {part.p if isinstance(part, nn.Dropout) and part.training else 0.0 for part in found}
