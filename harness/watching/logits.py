"""Ask a model in memory: logits under the conditions it computes in, with rounding on or off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

ROUNDING_LAYERS = ("Fp8Linear", "FakeQuantLinear")
"""Classes that a linear layer has while it multiplies in fp8 or as int8 for training's sake."""
ROUNDED, PLAIN = "rounded", "plain"
Array = np.ndarray[Any, Any]


@contextmanager
def asking(model: Any) -> Iterator[None]:
    """Switch training off while a model is asked, and autocast on where a head is left in fp32."""
    was_training = model.training
    model.eval()
    is_half = model.dtype in (torch.float16, torch.bfloat16)
    is_mixed = is_half and any("modules_to_save" in name for name, _ in model.named_parameters())
    kind = device_of(model).type
    try:
        with torch.no_grad(), torch.autocast(kind, model.dtype, enabled=is_mixed):
            yield
    finally:
        model.train(was_training)
        for part in model.modules():  # outside of training FSDP leaves the outermost part whole
            if isinstance(part, FSDPModule):
                part.reshard()


def device_of(model: Any) -> torch.device:
    """Return where the ids go."""
    device: torch.device = model.get_input_embeddings().weight.device
    return device


def compute_logits(model: Any, rows: Sequence[Sequence[int] | Mapping[str, Any]]) -> list[Array]:
    """Return the logits of each row by itself (no padding), as fp32 arrays.

    Args:
        model: any transformers or PEFT model.
        rows: token ids, or everything that the model takes for one row.

    Returns:
        (tokens, vocabulary or classes) each; (scores,) for a model that scores a whole row.
    """
    device = device_of(model)
    found = []
    with asking(model):
        for row in rows:
            inputs = dict(row) if isinstance(row, Mapping) else {"input_ids": [list(row)]}
            tensors = {name: torch.as_tensor(value).to(device) for name, value in inputs.items()}
            logits = model(**tensors).logits
            found.append(logits[0].float().cpu().numpy())
    return found


def rounding_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers that round as training does."""
    return [m for m in model.modules() if type(m).__name__ in ROUNDING_LAYERS]


def remembered(model: nn.Module) -> tuple[str, ...]:
    """Return the names of what rounding layers know of earlier steps, below the layer; not of 0."""
    found: set[str] = set()
    for layer in rounding_layers(model):
        held = [*layer.named_buffers(), *layer.named_parameters()]
        found |= {name for name, one in held if "." in name and bool(one.detach().any())}
    return tuple(sorted(found))


@contextmanager
def without_rounding(model: nn.Module) -> Iterator[None]:
    """Let layers that round for training's sake compute plainly, as what is saved will."""
    layers = [(layer, layer.__class__) for layer in rounding_layers(model)]
    try:
        for layer, _ in layers:
            layer.__class__ = nn.Linear
        yield
    finally:
        for layer, kind in layers:
            layer.__class__ = kind


def save_reference(
    path: Path, model: Any, rows: Sequence[Sequence[int] | Mapping[str, Any]]
) -> float:
    """Keep rows and what the model makes of them, for the comparison in a fresh process.

    Returns:
        What rounding for training's sake changes: the largest difference, relative to the largest
        logit; 0 where nothing rounds.
    """
    arrays: dict[str, Any] = {}
    kinds = {PLAIN: without_rounding, ROUNDED: None} if rounding_layers(model) else {PLAIN: None}
    made: dict[str, list[Array]] = {}
    for kind, around in kinds.items():
        if around is None:
            made[kind] = compute_logits(model, rows)
        else:
            with around(model):
                made[kind] = compute_logits(model, rows)
    for index, row in enumerate(rows):
        inputs = row if isinstance(row, Mapping) else {"input_ids": [list(row)]}
        for name, value in inputs.items():
            arrays[f"in{index}.{name}"] = np.asarray(value)
    for kind, found in made.items():
        arrays |= {f"{kind}{index}": logits for index, logits in enumerate(found)}
    np.savez(path, **arrays)
    if ROUNDED not in made:
        return 0.0
    scale = max(float(np.abs(logits).max()) for logits in made[PLAIN])
    return max_difference(made[PLAIN], made[ROUNDED]) / max(scale, 1e-12)


def read_reference(path: Path, kind: str = PLAIN) -> tuple[list[dict[str, Array]], list[Array]]:
    """Return the rows that `save_reference` kept, and the logits of one kind."""
    with np.load(path) as stored:
        num = sum(name.startswith(PLAIN) for name in stored.files)
        rows: list[dict[str, Array]] = [{} for _ in range(num)]
        for name in stored.files:
            place, _, field = name.partition(".")
            if field:
                rows[int(place[2:])][field] = stored[name]
        kept = kind if f"{kind}0" in stored.files else PLAIN  # nothing rounded that should have
        return rows, [stored[f"{kept}{i}"] for i in range(num)]


def max_difference(left: Sequence[Array], right: Sequence[Array]) -> float:
    """Return the largest absolute difference; the largest number there is for NaN and infinity."""
    largest = max(float(np.abs(a - b).max()) for a, b in zip(left, right, strict=True))
    return largest if np.isfinite(largest) else float(np.finfo(np.float32).max)
