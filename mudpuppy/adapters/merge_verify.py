"""Compare a merged model with its base and adapter in PEFT: logits, and what they generate."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from mudpuppy.adapters.merge import merge_adapter
from mudpuppy.adapters.merge_inputs import TORCH_NAMES, Inputs
from mudpuppy.errors import EngineError
from mudpuppy.quant.blocks import replace_module
from mudpuppy.quant.formats import FORMATS
from mudpuppy.quant.linear4bit import Linear4bit, find_4bit
from mudpuppy.quant.opening import open_model

PROMPTS = (
    "Who lives in the pond?",
    "The quick brown fox jumps over the lazy dog, and then",
    "def add(a, b):\n    return",
)
"""What both models read."""
NUM_TOKENS = 16
"""Tokens that both generate."""
MAX_DIFFERENCE = {"F32": 1e-3, "F16": 1e-2, "BF16": 5e-2}
"""Largest distance of the logits, as a share of their size: what rounding each weight once to that
type leaves, with a margin of about five; a merge that went wrong differs by the whole adapter."""

MAX_FLIPPED = 1e-2
"""The same for a result in few bits: a sum that lies between two levels may go to either."""


def verify_merge(folder: Path, inputs: Inputs) -> Iterator[str]:
    """Yield the figures of a comparison, one line each; both models compute in fp32.

    A result in few bits is held against base and adapter whose merge is rounded in memory in the
    same way: what rounding itself costs is told, and a wrong level or scale is still seen.

    Raises:
        EngineError: logits are not finite, or differ by more than rounding explains.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [tokenizer(prompt, return_tensors="pt").input_ids for prompt in PROMPTS]
    adapted = _adapt(_load_base(folder, inputs), inputs)
    with torch.no_grad(), adapted.disable_adapter():
        base_logits = [_logits(adapted, row) for row in rows]
    expected = [_logits(adapted, row) for row in rows]
    moved = max(_distance(a, b) for a, b in zip(base_logits, expected, strict=True))
    merged = _load(folder)
    packed = {name: layer for name, layer in find_4bit(merged).items() if layer.is_packed}
    if packed:
        exact = expected
        adapted = _rounded_merge(adapted, packed, merged.hf_quantizer.quantization_config.search)
        expected = [_logits(adapted, row) for row in rows]
        lost = max(_distance(a, b) for a, b in zip(expected, exact, strict=True))
        yield f"verify: rounding to few bits moves the logits by {lost:.2e} of their size"
        if lost > moved:
            yield f"warning: that is more than the adapter does ({moved:.2e})"
    texts = [_generate(adapted, row) for row in rows]
    del adapted
    logits = [_logits(merged, row) for row in rows]
    own_texts = [_generate(merged, row) for row in rows]
    difference = max(_distance(a, b) for a, b in zip(logits, expected, strict=True))
    kinds = {entry.dtype for entry in _floats(folder)}
    least = MAX_FLIPPED if packed else MAX_DIFFERENCE["F32"]
    allowed = max([least, *(MAX_DIFFERENCE[kind] for kind in kinds)])
    pairs = list(zip(logits, expected, strict=True))
    agreeing = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in pairs)
    places = sum(a.shape[0] for a in logits)
    yield (
        f"verify: logits differ by {difference:.2e} of their size (allowed {allowed:.0e}); the "
        f"adapter moves them by {moved:.2e}"
    )
    yield f"verify: the most likely token agrees in {agreeing} of {places} places"
    same = sum(a == b for a, b in zip(texts, own_texts, strict=True))
    yield f"verify: {same} of {len(texts)} answers of {NUM_TOKENS} tokens are the same"
    if not difference <= allowed:
        raise EngineError(
            f"the merged model differs from base and adapter by {difference:.2e} of its logits, "
            f"more than {allowed:.0e}; nothing was published",
            hint="merge in a wider type (--precision fp32), or report this with both folders",
        )


def _floats(folder: Path) -> list[Any]:
    from mudpuppy.safefile import checkpoint_tensors

    held = checkpoint_tensors(folder).values()
    return [e for e in held if e.dtype in TORCH_NAMES and not e.name.endswith(".scales")]


def _load(folder: Path) -> Any:
    config = AutoConfig.from_pretrained(folder)
    (name,) = config.architectures
    return getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()


def _adapt(base: Any, inputs: Inputs) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT's own calls
        return PeftModel.from_pretrained(base, str(inputs.adapter.folder)).eval()


def _rounded_merge(adapted: Any, packed: Mapping[str, Linear4bit], search: int) -> Any:
    """Merge in memory and round as the result is; layers without an adapter keep their levels."""
    prefix = "base_model.model."
    touched = {
        name.removeprefix(prefix)
        for name, module in adapted.named_modules()
        if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper)
    }
    before = {name.removeprefix(prefix): layer for name, layer in find_4bit(adapted).items()}
    kept = {
        name: layer.packed
        for name, layer in before.items()
        if name in packed
        and name not in touched
        and (layer.format, layer.block_size) == (packed[name].format, packed[name].block_size)
    }
    merged: Any = merge_adapter(adapted, torch.float32)
    for name, layer in packed.items():
        linear = merged.get_submodule(name)
        form, size = layer.format, layer.block_size
        own = kept.get(name) or form.quantise(linear.weight, size, search)
        rounded = Linear4bit.from_packed(own, form, compute_dtype=torch.float32)
        rounded.register_parameter("bias", linear.bias)
        replace_module(merged, name, rounded)
    return merged


def _load_base(folder: Path, inputs: Inputs) -> Any:
    """Return the base as the adapter saw it: with the merged model's head and vocabulary size."""
    (name,) = AutoConfig.from_pretrained(folder).architectures
    base: Any = open_model(inputs.base, torch.float32, auto_class=name)
    rows = AutoConfig.from_pretrained(folder).get_text_config().vocab_size
    if rows != base.get_input_embeddings().weight.shape[0]:
        base.resize_token_embeddings(rows, mean_resizing=False)
    if inputs.packed is not None:
        packing = inputs.packed.packing
        for module in inputs.packed.modules:
            linear = base.get_submodule(module)
            if inputs.seen is not None:
                linear.to(getattr(torch, TORCH_NAMES[inputs.seen]))
            packed = Linear4bit.from_linear(
                linear,
                FORMATS[packing.format],
                block_size=packing.block_size,
                search=packing.search,
                compute_dtype=torch.float32,
            )
            replace_module(base, module, packed)
    return base


@torch.no_grad()
def _logits(model: Any, row: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=row).logits.flatten(0, -2).float()
    if not bool(torch.isfinite(logits).all()):
        raise EngineError("the logits of a model that is compared are not finite")
    return logits


@torch.no_grad()
def _generate(model: Any, row: Tensor) -> list[int]:
    """Return greedily generated ids, or nothing where the model generates none."""
    if not getattr(model, "can_generate", lambda: False)():
        return []
    made = model.generate(
        input_ids=row,
        attention_mask=torch.ones_like(row),
        max_new_tokens=NUM_TOKENS,
        do_sample=False,
    )
    ids: list[int] = made[0].tolist()
    return ids


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm().clamp_min(1e-30))
