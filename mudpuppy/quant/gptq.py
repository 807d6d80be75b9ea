"""Quantise a model with GPTQ, one decoder block after the other.

Every block sees the outputs of the quantised blocks before it, so that it can make good their
error as well. Only one block's Hessians and the samples' hidden states are held at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mudpuppy.errors import EngineError
from mudpuppy.quant.blocks import find_decoder_layers, find_linears, replace_module
from mudpuppy.quant.gptq_files import load_gptq, save_gptq
from mudpuppy.quant.gptq_linear import GptqLinear
from mudpuppy.quant.gptq_matrix import GptqConfig, HessianSum, quantise_matrix

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


@dataclass
class _Sample:
    """One calibration sample on its way through the blocks."""

    mask: Tensor | None
    """(batch, length), true where there is a token; None where there is no padding."""
    hidden: Tensor
    """(batch, length, width): the input of the next block."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    """What every block is called with beside the hidden states; families mix kinds of attention."""


@torch.no_grad()
def quantise_model(
    model: Any,
    samples: Sequence[Mapping[str, Tensor]],
    config: GptqConfig,
    progress: Callable[[str], None] | None = None,
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

    Returns:
        One entry for every linear layer of the blocks, in the model's order.

    Raises:
        EngineError: a layer cannot be quantised (it is named), or none can.
        ValueError: there are no samples.
    """
    if not samples:
        raise ValueError("GPTQ needs at least one calibration sample")
    stack = find_decoder_layers(model)
    errors: list[LayerError] = []
    with _evaluating(model):
        walking = _capture(model, stack.layers, samples)
        for index, block in enumerate(stack.layers):
            name = f"{stack.name}.{index}"
            for error in _quantise_block(model, block, name, index, walking, config):
                errors.append(error)
                if progress is not None:
                    progress(_describe(error))
            for sample in walking:
                sample.hidden = _run_block(block, sample, index)
    if all(error.skipped for error in errors):
        reason = errors[0].skipped if errors else "its decoder blocks have no linear layers"
        raise EngineError(f"nothing in this model can be quantised: {reason}")
    return errors


def _describe(error: LayerError) -> str:
    if error.skipped:
        return f"{error.name}: left as it is, {error.skipped}"
    share = error.gptq_error / error.rtn_error if error.rtn_error else 1.0
    return f"{error.name}: {share:.2f} of the error of rounding to nearest"


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off inside, and every module back to its own mode afterwards."""
    # by name: most of the linear layers are other modules afterwards
    training = {name: module.training for name, module in model.named_modules()}
    model.eval()
    try:
        yield
    finally:
        for name, mode in training.items():
            model.get_submodule(name).training = mode


def _capture(
    model: Any, layers: nn.ModuleList, samples: Sequence[Mapping[str, Tensor]]
) -> list[_Sample]:
    """Run every sample once, and note what each block is called with."""
    device = model.get_input_embeddings().weight.device
    found: list[_Sample] = []
    for inputs in samples:
        moved = {key: value.to(device) for key, value in inputs.items() if key != "labels"}
        seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        hooks = [
            layer.register_forward_pre_hook(
                lambda _, args, kwargs, seen=seen: seen.append((args, kwargs)), with_kwargs=True
            )
            for layer in layers
        ]
        try:
            model(**moved, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        mask = moved.get("attention_mask")
        hidden = _hidden_of(*seen[0])
        calls = [(args[1:], _without_hidden(kwargs)) for args, kwargs in seen]
        found.append(_Sample(None if mask is None else mask.bool(), hidden, calls))
    return found


def _hidden_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


def _without_hidden(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if key != "hidden_states"}


def _run_block(block: nn.Module, sample: _Sample, index: int) -> Tensor:
    args, kwargs = sample.calls[index]
    output = block(sample.hidden, *args, **kwargs)
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _quantise_block(
    model: nn.Module,
    block: nn.Module,
    name: str,
    index: int,
    samples: list[_Sample],
    config: GptqConfig,
) -> Iterator[LayerError]:
    """Quantise the linear layers of one block, and yield what it did to each."""
    linears = find_linears(block, name)
    reasons = {layer: _why_not(linear, config) for layer, linear in linears.items()}
    wanted = {layer: linear for layer, linear in linears.items() if not reasons[layer]}
    hessians = _collect_hessians(block, wanted, samples, index)
    for layer, linear in linears.items():
        if reasons[layer]:
            yield LayerError(layer, 0.0, 0.0, 0.0, reasons[layer])
            continue
        try:
            result = quantise_matrix(linear.weight, hessians.pop(layer).matrix, config)
        except EngineError as error:
            raise EngineError(f"{layer}: {error.message}", hint=error.hint) from error
        replace_module(model, layer, GptqLinear(linear, result.tensors, config.bits))
        yield LayerError(layer, result.gptq_error, result.rtn_error, result.damping)


def _why_not(linear: nn.Linear, config: GptqConfig) -> str:
    """Return why the layout cannot hold this layer, or an empty text."""
    per_word = 32 // config.bits
    for side, size in (("in", linear.in_features), ("out", linear.out_features)):
        if size % per_word:
            return f"its {side}_features {size} is not divisible by {per_word}"
    return ""


def _collect_hessians(
    block: nn.Module, linears: dict[str, nn.Linear], samples: list[_Sample], index: int
) -> dict[str, HessianSum]:
    """Run every sample through the block, and sum the Hessian of each layer's inputs."""
    sums = {
        name: HessianSum(linear.in_features, linear.weight.device)
        for name, linear in linears.items()
    }
    mask: Tensor | None = None

    def watch(total: HessianSum) -> Callable[..., None]:
        def add(_: nn.Module, args: tuple[Tensor, ...], __: Tensor) -> None:
            inputs = args[0]
            # padding says nothing about the data; an expert's inputs have lost the batch's shape
            is_padded = mask is not None and inputs.shape[:2] == mask.shape
            total.add(inputs[mask] if is_padded else inputs)

        return add

    hooks = [linears[name].register_forward_hook(watch(sums[name])) for name in linears]
    try:
        for sample in samples:
            mask = sample.mask
            _run_block(block, sample, index)
    finally:
        for hook in hooks:
            hook.remove()
    return sums
