"""The blocks of a GPTQ run: brought from the base's files, kept in checkpoints, and let go.

Every quantised block is a checkpoint of its own, `checkpoint-N` after N blocks, in the form that
`--resume` knows of training. A run that goes on takes the blocks of all of them, and computes only
hidden states again. The artefact is put together from them, so that neither the full model nor the
quantised one is ever in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mudpuppy.checkpoint_form import BLOCK_FILE, STATE_FILE, read_json
from mudpuppy.checkpoints import Identity, Resumable, write_manifest
from mudpuppy.files import write_json_atomic
from mudpuppy.leftovers import CHECKPOINT_MARK
from mudpuppy.quant.blocks import find_decoder_layers
from mudpuppy.quant.gptq import Blocks, KeptBlock, LayerError
from mudpuppy.quant.gptq_linear import GptqLinear
from mudpuppy.quant.gptq_pack import GptqTensors
from mudpuppy.quant.lazy_base import LazyBlocks


@dataclass(frozen=True, kw_only=True)
class QuantiseResult:
    """What GPTQ did."""

    model: Any
    """The quantised model; its blocks are empty where nobody looks at them."""
    quantisation: dict[str, Any]
    """Scheme, per-layer errors and divergence, for the run's record."""
    save: Callable[[Path], None]
    """Writes model and tokenizer in the GPTQ layout into a folder that is not there yet."""


class CheckpointedBlocks(Blocks):
    """The blocks of one model and one output folder.

    Args:
        model: the model.
        output: the run's folder.
        identity: what the run is made of.
        device: where blocks compute.
        lazy: where the weights of blocks wait that are on `meta`; None where all are in the model.
        resumed: the newest checkpoint of the run that this one goes on with.
        stays: whether blocks stay in the model when they are done, for somebody who looks at it.
    """

    def __init__(
        self,
        model: Any,
        output: Path,
        identity: Identity,
        device: torch.device,
        *,
        lazy: LazyBlocks | None = None,
        resumed: Resumable | None = None,
        stays: bool = False,
    ) -> None:
        self._stack = find_decoder_layers(model)
        self._output = output
        self._identity = identity
        self._device = device
        self._lazy = lazy
        self._done = 0 if resumed is None else resumed.step
        self._stays = stays

    def bring_all(self) -> None:
        """Bring every block, for somebody who looks at the whole model."""
        for index in range(len(self._stack.layers)):
            self.bring(index)

    def bring(self, index: int) -> None:
        """See that a block has its weights, on the device of the computation."""
        block = self._stack.layers[index]
        if self._lazy is None:
            block.to(self._device)
        else:
            self._lazy.fill(block, f"{self._stack.name}.{index}", self._device)

    def recall(self, index: int) -> KeptBlock | None:
        """Return what the run before made of a block; None where it came not so far."""
        if index >= self._done:
            return None
        folder = self._folder(index)
        layers = read_json(folder / STATE_FILE)["layers"]
        tensors = read_block(folder)
        names = [key.removesuffix(".qweight") for key in tensors if key.endswith(".qweight")]
        packed = {
            name: GptqTensors(*(tensors[f"{name}.{part}"] for part in GptqTensors._fields))
            for name in names
        }
        return KeptBlock([LayerError(**layer) for layer in layers], packed)

    def keep(self, index: int, errors: Sequence[LayerError]) -> None:
        """Write a block's checkpoint: complete or, without its manifest, absent."""
        folder = self._folder(index)
        folder.mkdir(exist_ok=True)
        (folder / CHECKPOINT_MARK).touch()
        prefix = f"{self._stack.name}.{index}"
        block = self._stack.layers[index]
        packed = {
            f"{prefix}.{name}": module
            for name, module in block.named_modules()
            if isinstance(module, GptqLinear)
        }
        tensors = {f"{prefix}.{name}": tensor for name, tensor in block.state_dict().items()}
        for name, layer in packed.items():
            del tensors[f"{name}.weight"]
            tensors |= {f"{name}.{part}": t for part, t in layer.tensors._asdict().items()}
        save_file({n: t.cpu().contiguous() for n, t in tensors.items()}, folder / BLOCK_FILE)
        state = {"global_step": index + 1, "layers": [error._asdict() for error in errors]}
        write_json_atomic(folder / STATE_FILE, state)
        write_manifest(folder, index + 1, self._identity)

    def release(self, index: int) -> None:
        """Let a block go: it is in its checkpoint."""
        block = self._stack.layers[index]
        if self._stays:
            return
        for module in block.modules():
            if isinstance(module, GptqLinear):
                module.tensors = GptqTensors(*(t.to("meta") for t in module.tensors))
        block.to("meta")

    def state(self, model: Any) -> dict[str, Tensor]:
        """Return the whole quantised model: its blocks mapped from their files, not read."""
        prefix = f"{self._stack.name}."
        found = {n: t for n, t in model.state_dict().items() if not n.startswith(prefix)}
        for index in range(len(self._stack.layers)):
            found |= read_block(self._folder(index))
        return found

    def _folder(self, index: int) -> Path:
        return self._output / f"checkpoint-{index + 1}"


def read_block(folder: Path) -> Mapping[str, Tensor]:
    """Return the tensors of a block's checkpoint."""
    with safe_open(folder / BLOCK_FILE, framework="pt") as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
