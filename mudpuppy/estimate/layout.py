"""Lay a model out without memory: its tensors by kind, and what one forward pass would keep.

The model is built on torch's meta device from its configuration, gets its adapter there, and runs
one forward pass with fake tensors, which have shapes and types and no bytes. So the counts are
those of the real modules, whatever the architecture, under the real autocast; only the attention
kernel may differ, since fake tensors choose the processor's flash attention.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from peft import get_peft_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from mudpuppy.adapters.attach import ADAPTER_MARKS, lora_settings
from mudpuppy.config import TrainingConfig
from mudpuppy.errors import ModelError, UsageError
from mudpuppy.memory.flat import end_of, plan_places
from mudpuppy.quant.blocks import find_decoder_layers, find_linears
from mudpuppy.quant.fake_quant import fake_quantised
from mudpuppy.quant.formats import FORMATS
from mudpuppy.quant.fp8 import Fp8Path, fp8_linears
from mudpuppy.quant.int_sums import can_multiply_int8
from mudpuppy.runtime import DTYPES


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Bytes that a forward pass keeps for the backward pass."""

    activations: int = 0
    """Outputs and inputs of operations."""
    copies: int = 0
    """Weights in the type that they were multiplied in (autocast, fp8, int8)."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The tensors of a run, in bytes unless the name says otherwise."""

    parameters: int
    """Number of parameters of the model without adapter."""
    weights: int
    """Weights of the model as they are held: fp32 masters, frozen ones, or 4-bit blocks."""
    layer_weights: int
    """The part of `weights` that is in the decoder layers."""
    slot: int
    """The largest layer's parameters in one buffer, as streaming lays them out."""
    slots: int
    """The sum of the same of all layers."""
    plain_weights: int
    """Weights in the type of the computation, as a merge makes them."""
    adapter: int
    """Weights of the adapter, fp32."""
    trainable: int
    """Number of parameters that the optimizer updates."""
    trainable_tensors: int
    """Tensors that the optimizer updates."""
    trainable_in_layers: int
    """The part of `trainable` that is in the decoder layers."""
    layers: int
    """Number of decoder layers."""
    inside: Kept
    """What all decoder layers keep."""
    outside: Kept
    """What everything but the decoder layers keeps, head and loss excluded."""
    border: int
    """Hidden states of the batch between two layers."""
    largest_kept: int
    """Largest single tensor that is kept."""
    largest_linear: int
    """Number of weights of the largest linear layer in a decoder layer."""
    vocabulary: int
    """Outputs of the head; 0 where no token is scored."""
    head: int
    """Number of weights of the head."""
    width: int
    """Width of the hidden states."""
    cache_per_token: int
    """Keys and values of one token in all layers, in the type of the computation."""


def lay_out(settings: Any, config: TrainingConfig, *, batch: int, length: int) -> Layout:
    """Return the layout of a run.

    Args:
        settings: the model's configuration, as transformers reads it; it is not changed.
        config: the settings of the run.
        batch: sequences of one forward pass.
        length: tokens of each, padding included.

    Raises:
        ModelError: the model cannot be built or run without weights.
        ConfigError: a target module that the model does not have.
    """
    with _blaming(settings), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        return _lay_out(copy.deepcopy(settings), config, batch, length)


@contextmanager
def _blaming(settings: Any) -> Iterator[None]:
    try:
        yield
    except (MemoryError, UsageError):
        raise
    except Exception as error:
        line = str(error).strip().partition("\n")[0][:300]
        kind = getattr(settings, "model_type", "this model")
        raise ModelError(
            f"a {kind} model cannot be laid out without weights: {type(error).__name__}: {line}"
        ) from error


def _lay_out(settings: Any, config: TrainingConfig, batch: int, length: int) -> Layout:
    dtype = DTYPES[config.precision]
    is_frozen = config.trains_adapter or config.method == "gptq"
    auto_class, more, task_type = form_of(config)
    with torch.device("meta"):
        model = getattr(transformers, auto_class).from_config(
            _with(settings, more), dtype=dtype if is_frozen else torch.float32
        )
    parameters = sum(one.numel() for one in model.parameters())
    body = model.base_model
    stack = find_decoder_layers(model)
    quantised = find_linears(stack.layers, stack.name) if config.method == "qlora" else {}
    saved = sum(_saved_by_packing(one, config) for one in quantised.values())
    weights = sum(one.nbytes for one in model.parameters())
    layer_weights = sum(one.nbytes for one in stack.layers.parameters())
    plain = sum(one.numel() * dtype.itemsize for one in model.parameters())
    laid_out = [end_of(plan_places(list(one.parameters()))) for one in stack.layers]
    linears = [one.weight.numel() for one in find_linears(stack.layers, "").values()]
    head, vocabulary = _head(model)
    adapted: nn.Module = _adapt(model, config, task_type) if config.trains_adapter else model
    mine = {n: p for n, p in adapted.named_parameters() if any(m in n for m in ADAPTER_MARKS)}
    if config.method == "gptq":
        adapted.requires_grad_(False)
    trained = [one for one in adapted.parameters() if one.requires_grad]
    in_layers = sum(one.numel() for one in stack.layers.parameters() if one.requires_grad)
    kept = _run(body, stack.layers, config, batch, length) if trained else _Kept()
    text = settings.get_text_config()
    return Layout(
        parameters=parameters,
        weights=weights - saved,
        layer_weights=layer_weights - saved,
        slot=max(laid_out),
        slots=sum(laid_out),
        plain_weights=plain,
        adapter=sum(one.nbytes for one in mine.values()),
        trainable=sum(one.numel() for one in trained),
        trainable_tensors=len(trained),
        trainable_in_layers=in_layers,
        layers=len(stack.layers),
        inside=Kept(activations=kept.inside - kept.copies_inside, copies=kept.copies_inside),
        outside=Kept(activations=kept.outside - kept.copies_outside, copies=kept.copies_outside),
        border=kept.border,
        largest_kept=kept.largest,
        largest_linear=max(linears, default=0),
        vocabulary=vocabulary,
        head=head,
        width=int(text.hidden_size),
        cache_per_token=_cache_per_token(text, len(stack.layers)) * dtype.itemsize,
    )


def form_of(config: TrainingConfig) -> tuple[str, dict[str, Any], str | None]:
    """Return auto class, settings and PEFT's task of a method; only where they are special."""
    if config.method not in ("rm", "prm", "multimodal"):
        return "AutoModelForCausalLM", {}, "CAUSAL_LM"
    from mudpuppy.methods.family import find_family

    family = find_family(config.method)
    return family.form.auto_class, dict(family.form.settings), family.task_type


def _with(settings: Any, more: dict[str, Any]) -> Any:
    for name, value in more.items():
        setattr(settings, name, value)
    return settings


def _saved_by_packing(linear: nn.Linear, config: TrainingConfig) -> int:
    """Return the bytes that packing a linear layer saves."""
    form = FORMATS[config.resolved_quant]
    rows, columns = linear.weight.shape
    packed = form.packed_bytes(rows, columns, config.resolved_quant_block_size)
    return int(linear.weight.nbytes) - packed


def _head(model: Any) -> tuple[int, int]:
    """Return weights and outputs of the head that scores tokens, or zeros."""
    head = model.get_output_embeddings()
    return (0, 0) if head is None else (int(head.weight.numel()), int(head.weight.shape[0]))


def _adapt(model: Any, config: TrainingConfig, task_type: str | None) -> nn.Module:
    settings = lora_settings(model, config, task_type)
    with torch.device("meta"):
        adapted: nn.Module = get_peft_model(model, settings)
    return adapted


def _cache_per_token(text: Any, layers: int) -> int:
    """Return the numbers that the cache of keys and values holds for one token."""
    heads = getattr(text, "num_attention_heads", 1)
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    keys = getattr(text, "num_key_value_heads", None) or heads
    return int(2 * layers * keys * size)


class _Kept:
    """Counts what autograd saves, once for each storage, apart from the parameters themselves."""

    def __init__(
        self, own: frozenset[int] = frozenset(), shapes: frozenset[Any] = frozenset()
    ) -> None:
        self.own, self.shapes = own, shapes
        self.inside = self.outside = self.copies_inside = self.copies_outside = 0
        self.largest = self.border = 0
        self.is_inside = False
        self._seen: dict[int, Any] = {}

    def pack(self, tensor: Tensor) -> None:
        """Count a tensor that is saved, and save nothing in its place: no backward pass follows.

        A saved tensor that is the output of its own operation would hold itself for good.
        """
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.own or key in self._seen:
            return
        self._seen[key] = storage  # kept, so that no other storage gets its address
        size = storage.nbytes()
        is_copy = tuple(tensor.shape) in self.shapes
        if self.is_inside:
            self.inside += size
            self.copies_inside += size * is_copy
        else:
            self.outside += size
            self.copies_outside += size * is_copy
        self.largest = max(self.largest, 0 if is_copy else size)

    def enter(self, layer: nn.Module, args: Any, kwargs: Any) -> None:
        """Note that a decoder layer begins."""
        del layer
        self.is_inside = True
        hidden = args[0] if args else kwargs["hidden_states"]
        self.border = hidden.numel() * hidden.element_size()

    def leave(self, *_: Any) -> None:
        """Note that a decoder layer has ended."""
        self.is_inside = False


def _run(
    body: Any, layers: nn.ModuleList, config: TrainingConfig, batch: int, length: int
) -> _Kept:
    """Run the body once with fake tensors in training mode, and count what is kept."""
    body.train()
    dtype = DTYPES[config.precision]
    # torch logs a traceback where an operation has no fake form in a type; the error says enough.
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
    can_multiply_int8("cpu")  # its check needs numbers, which fake tensors have none of
    with FakeTensorMode(allow_non_fake_inputs=True):
        fakes: dict[str, Tensor] = {
            name: nn.Parameter(torch.empty(p.shape, dtype=p.dtype), requires_grad=p.requires_grad)
            for name, p in body.named_parameters()
        }
        buffers = {n: torch.empty(b.shape, dtype=b.dtype) for n, b in body.named_buffers()}
        everything = {**fakes, **buffers}
        # where a weight has as many rows as there are tokens, its copy counts as an activation
        matrices = [
            tuple(p.shape)
            for p in body.parameters()
            if p.dim() == 2 and batch * length not in p.shape
        ]
        kept = _Kept(
            frozenset(one.untyped_storage()._cdata for one in everything.values()),
            frozenset([*matrices, *(shape[::-1] for shape in matrices)]),
        )
        hooks = [layer.register_forward_pre_hook(kept.enter, with_kwargs=True) for layer in layers]
        hooks += [layer.register_forward_hook(kept.leave) for layer in layers]
        inputs = {"input_ids": torch.zeros(batch, length, dtype=torch.long), "use_cache": False}
        with (
            torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32),
            _around(body, config),
            saved_tensors_hooks(kept.pack, _no_backward),
        ):
            functional_call(body, everything, (), inputs)
        for hook in hooks:
            hook.remove()
    return kept


def _no_backward(packed: None) -> Tensor:
    """Stand where a saved tensor would be brought back.

    Raises:
        RuntimeError: always.
    """
    del packed
    raise RuntimeError("a forward pass that is only counted has no backward pass")


def _around(body: nn.Module, config: TrainingConfig) -> AbstractContextManager[Any]:
    """Return what the engine puts around the training."""
    if config.precision == "fp8":
        return fp8_linears(body, Fp8Path(hardware=False, reason="counted"))
    return fake_quantised(body) if config.method == "qat" else nullcontext()
