"""A base model whose decoder blocks stay in its safetensors files until each is needed.

transformers leaves the tensors of modules on "disk" where they are, and accelerate's hooks bring
them for every call of every layer. Here the hooks are taken off again, and a block is brought once,
as a whole. Weights that transformers renames or fuses while it loads are laid out by it in a
temporary folder; where the run is killed, the next one removes it.
"""

from __future__ import annotations

import logging
import shutil
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from accelerate.hooks import remove_hook_from_submodules
from accelerate.utils import set_module_tensor_to_device
from torch import Tensor, nn

from mudpuppy.leftovers import make_base_folder
from mudpuppy.quant.blocks import find_decoder_layers


class LazyBlocks:
    """The tensors of a model's decoder blocks, which are on the device `meta` in the model."""

    def __init__(self) -> None:
        # it warns that tensors are on disk, which is what is wanted
        logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
        self._folder, lock = make_base_folder()
        weakref.finalize(self, _remove, self._folder, lock)
        self._sources: dict[str, tuple[Mapping[str, Tensor], str]] = {}

    def settings(self, empty: nn.Module) -> dict[str, Any]:
        """Return what to add to `from_pretrained`, so that the blocks stay on disk.

        Args:
            empty: the model without weights, to see where its blocks are.

        Raises:
            EngineError: it has no decoder blocks.
        """
        return {
            "device_map": _keep_on_disk(empty, find_decoder_layers(empty).name),
            "offload_folder": str(self._folder),
            "use_safetensors": True,
        }

    def take_over(self, model: Any) -> None:
        """Note where every tensor on disk is, and take the hooks off that would bring it."""
        for name, module in model.named_modules():
            hook = vars(module).get("_hf_hook")
            weights = getattr(hook, "weights_map", None)
            if weights is not None:
                hook.offload = False  # else it would bring the weights when it goes
            for own, parameter in module.named_parameters(recurse=False):
                if parameter.is_meta and weights is not None:
                    self._sources[f"{name}.{own}"] = (weights, own)
        remove_hook_from_submodules(model)
        for module in model.modules():
            vars(module).pop("forward", None)  # put there by the hooks; the class's own is left
        vars(model).pop("hf_device_map", None)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield name and values of every tensor on disk, one at a time."""
        for name, (weights, own) in self._sources.items():
            yield name, weights[own]

    def fill(self, block: nn.Module, prefix: str, device: torch.device) -> None:
        """Give a block its weights.

        Args:
            block: the block; what is not on `meta` is only moved.
            prefix: its dotted name in the model.
            device: where it will compute.
        """
        for name, parameter in list(block.named_parameters()):
            if parameter.is_meta and f"{prefix}.{name}" in self._sources:
                weights, own = self._sources[f"{prefix}.{name}"]
                set_module_tensor_to_device(block, name, device, value=weights[own])
        block.to(device)


def _remove(folder: Path, lock: IO[str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    lock.close()


def _keep_on_disk(model: nn.Module, name: str) -> dict[str, str]:
    """Return where everything goes: the module of that dotted name to disk, its siblings not."""
    places: dict[str, str] = {}
    inside, prefix = model, ""
    for part in name.split("."):
        beside = [child for child, _ in inside.named_children() if child != part]
        beside += [own for own, _ in inside.named_parameters(recurse=False)]
        places |= {prefix + one: "cpu" for one in beside}
        inside, prefix = inside.get_submodule(part), f"{prefix}{part}."
    return {**places, name: "disk"}


def move_what_is_there(model: nn.Module, device: torch.device) -> None:
    """Move the tensors of a model that are not on `meta`."""
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if not parameter.is_meta:
                parameter.data = parameter.data.to(device)
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
