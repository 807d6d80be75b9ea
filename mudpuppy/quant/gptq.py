"""Quantise a model with GPTQ, one decoder block after the other.

Every block sees the outputs of the quantised blocks before it, so that it can make good their
error as well. At a time one block's weights and Hessians are held, and the samples' hidden states.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mudpuppy.errors import EngineError
from mudpuppy.quant.block_walk import BlockWalk, Inputs, Route, evaluating
from mudpuppy.quant.blocks import find_decoder_layers, find_linears, replace_module
from mudpuppy.quant.gptq_compare import HeldOut
from mudpuppy.quant.gptq_files import save_gptq
from mudpuppy.quant.gptq_grid import GptqConfig, why_too_small
from mudpuppy.quant.gptq_linear import GptqLinear
from mudpuppy.quant.gptq_matrix import Factored, factorise, quantise_matrix
from mudpuppy.quant.gptq_pack import GptqTensors, levels_per_unit
from mudpuppy.quant.gptq_read import load_gptq
from mudpuppy.quant.hessians import collect_hessians
from mudpuppy.quant.hidden_store import HiddenStore, Slot

__all__ = ["GptqConfig", "LayerError", "load_gptq", "quantise_model", "save_gptq"]


class LayerError(NamedTuple):
    """What quantising one layer did to its output on the calibration samples."""

    name: str
    """Dotted name of the layer."""
    gptq_error: float
    """tr(dW H dW^T), H = 2 X X^T, of GPTQ: twice the summed squared change of the output."""
    rtn_error: float
    """The same of rounding to the nearest level of the same kind of grid."""
    damping: float
    """Share of the Hessian's mean diagonal that was added to it."""
    skipped: str = ""
    """Why the layer was left as it is; its numbers are 0 then."""


class KeptBlock(NamedTuple):
    """A block that an earlier run has quantised."""

    errors: list[LayerError]
    """What that did to each of its layers."""
    packed: dict[str, GptqTensors]
    """The packed form of the quantised ones, by full name."""


class Blocks:
    """Where the blocks of a model come from, and what becomes of them: here, they stay in it."""

    def bring(self, index: int) -> None:
        """See that a block has its weights, on the device of the computation."""

    def recall(self, index: int) -> KeptBlock | None:
        """Return what an earlier run made of a block; None where it came not so far."""
        del index
        return None

    def keep(self, index: int, errors: Sequence[LayerError]) -> None:
        """Make sure that the work on a block, which is quantised now, is not lost."""

    def release(self, index: int) -> None:
        """Let a block go that is not needed any more."""


@dataclass
class _Sample:
    """One calibration sample on its way through the blocks."""

    route: Route
    hidden: Slot


@torch.no_grad()
def quantise_model(
    model: Any,
    samples: Sequence[Inputs],
    config: GptqConfig,
    progress: Callable[[str], None] | None = None,
    *,
    held_out: HeldOut | None = None,
    blocks: Blocks | None = None,
    store: HiddenStore | None = None,
) -> list[LayerError]:
    """Quantise the linear layers inside the decoder blocks, in place.

    A quantised layer stays a linear layer whose `weight` holds the dequantised values, and carries
    the packed form for `save_gptq`. Embeddings, norms and the head are not touched.

    Args:
        model: a decoder-only language model of transformers.
        samples: calibration inputs, each as the model's forward takes them (`input_ids` and
            perhaps `attention_mask`, with a batch dimension); labels are not used.
        config: the grid.
        progress: called with one line after every layer.
        held_out: samples on which the result is compared with the full model.
        blocks: where the blocks' weights come from and go to; by default they are in the model.
        store: holds the samples' hidden states; by default in memory.

    Returns:
        One entry for every linear layer of the blocks, in the model's order.

    Raises:
        EngineError: a layer cannot be quantised (it is named), or none can.
        ValueError: there are no samples.
    """
    if not samples:
        raise ValueError("GPTQ needs at least one calibration sample")
    stack = find_decoder_layers(model)
    keeper, held, places = blocks or Blocks(), held_out or HeldOut([]), store or HiddenStore()
    walk = BlockWalk(model, stack.layers)
    errors: list[LayerError] = []
    with evaluating(model):
        keeper.bring(0)
        walking = [_Sample(route, places.place_for(x)) for route, x in walk.enter(samples)]
        held.enter(walk, places)
        for index, block in enumerate(stack.layers):
            keeper.bring(index)
            linears = find_linears(block, f"{stack.name}.{index}")
            reasons = {name: _why_not(linear, config) for name, linear in linears.items()}
            fitting = {name: linear for name, linear in linears.items() if not reasons[name]}
            held.pass_original(block, fitting, index, config)
            kept = keeper.recall(index)
            if kept is None:
                found = []
                for error in _quantise_block(
                    model, block, reasons, fitting, index, walking, config
                ):
                    found.append(error)
                    if progress is not None:
                        progress(f"block {index + 1}/{len(stack.layers)}, {_describe(error)}")
                keeper.keep(index, found)
            else:
                found = kept.errors
                for name, tensors in kept.packed.items():
                    replace_module(model, name, GptqLinear(fitting[name], tensors, config.bits))
            errors += found
            if index + 1 < len(stack.layers):
                for sample in walking:
                    sample.hidden.put(sample.route.run(block, index, sample.hidden.get()))
            held.pass_quantised(block, index)
            keeper.release(index)
        held.leave(walk)
    if all(error.skipped for error in errors):
        reason = errors[0].skipped if errors else "its decoder blocks have no linear layers"
        raise EngineError(f"nothing in this model can be quantised: {reason}")
    return errors


def _describe(error: LayerError) -> str:
    if error.skipped:
        return f"{error.name}: left as it is, {error.skipped}"
    share = error.gptq_error / error.rtn_error if error.rtn_error else 1.0
    return f"{error.name}: {share:.2f} of the error of rounding to nearest"


def _why_not(linear: nn.Linear, config: GptqConfig) -> str:
    """Return why the layout or its grid cannot hold this layer, or an empty text."""
    unit = levels_per_unit(config.bits)
    for side, size in (("in", linear.in_features), ("out", linear.out_features)):
        if size % unit:
            return f"its {side}_features {size} is not divisible by {unit}"
    return why_too_small(linear.weight, config)


def _quantise_block(
    model: nn.Module,
    block: nn.Module,
    reasons: Mapping[str, str],
    fitting: Mapping[str, nn.Linear],
    index: int,
    walking: Sequence[_Sample],
    config: GptqConfig,
) -> Iterator[LayerError]:
    """Quantise the linear layers of one block, and yield what it did to each."""

    def run() -> Iterator[Tensor | None]:
        for sample in walking:
            yield sample.route.mask
            sample.route.run(block, index, sample.hidden.get())

    hessians = collect_hessians(fitting, run)
    factored: dict[str, Factored] = {}
    waiting = Counter(hessians.leaders.values())
    for name, reason in reasons.items():
        if reason:
            yield LayerError(name, 0.0, 0.0, 0.0, reason)
            continue
        leader = hessians.leaders[name]
        try:
            if leader not in factored:
                factored[leader] = factorise(hessians.sums.pop(leader).matrix, config)
            result = quantise_matrix(fitting[name].weight, factored[leader], config)
        except EngineError as error:
            raise EngineError(f"{name}: {error.message}", hint=error.hint) from error
        waiting[leader] -= 1
        if not waiting[leader]:
            del factored[leader]
        replace_module(model, name, GptqLinear(fitting[name], result.tensors, config.bits))
        yield LayerError(name, result.gptq_error, result.rtn_error, result.damping)
