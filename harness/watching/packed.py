"""Reads a GPTQ folder by the format that it declares, and measures it against its base.

Nothing of the engine is used: levels, zero points and scales are unpacked here, and the inputs of
each layer are those that the base itself computes for the rows of the calibration.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from harness.evidence.quantised.bitstream import unpack_words
from harness.observations import Calibration, PackedLayer

CALIBRATION_FILE = "calibration.npz"
PARTS = ("qweight", "qzeros", "scales", "g_idx")
_BLOCK = re.compile(r".*?\.\d+\.")
"""The part of a layer's name that is its block's."""


class CalibrationWatcher:
    """Notes every row that runs through a model."""

    def __init__(self, model: Any, samples: int) -> None:
        """Start to listen; `samples` is how many there are."""
        self._samples = samples
        self._rows: list[list[int]] = []
        self._hook = model.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, model: nn.Module, args: Any, batch: dict[str, Any]) -> None:
        del model, args
        self._rows += batch["input_ids"].tolist()

    def conclude(self, path: Path) -> Calibration:
        """Stop listening, keep the rows in a file, and return how many there were."""
        self._hook.remove()
        rows: dict[str, Any] = {str(i): np.asarray(row) for i, row in enumerate(self._rows)}
        np.savez(path, **rows)
        return Calibration(passes=len(self._rows), samples=self._samples)


@torch.no_grad()
def measure_packed(folder: Path, base: Path, calibration: Path) -> tuple[PackedLayer, ...]:
    """Compare every packed layer with the base's weight.

    Args:
        folder: the GPTQ folder.
        base: folder of the model that was quantised.
        calibration: the rows that `CalibrationWatcher` kept.
    """
    with np.load(calibration) as stored:
        rows = [torch.tensor(stored[name])[None] for name in stored.files]
    form = _read_format(folder)
    packed = _read_packed(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    linears = {n: m for n, m in model.named_modules() if n in packed}
    products = _sum_products(model, linears, rows)
    measured = [
        _measure(name, linear.weight, packed[name], products[name], form)
        for name, linear in linears.items()
    ]
    replayed = _replay(model, linears, packed, form, rows)
    return tuple(replace(one, replayed_error=replayed[one.name]) for one in measured)


@dataclass(frozen=True, kw_only=True)
class _Format:
    """What the config of a GPTQ folder declares."""

    bits: int
    """Width of a level."""
    stored_less: int
    """By how much less zero points are stored than they are."""
    is_symmetric: bool
    """Whether levels reach as far below zero as above it."""


def _read_format(folder: Path) -> _Format:
    settings = json.loads((folder / "config.json").read_text("utf-8"))["quantization_config"]
    is_first = settings.get("checkpoint_format", "gptq") == "gptq"
    return _Format(
        bits=int(settings["bits"]),
        stored_less=1 if is_first else 0,
        is_symmetric=bool(settings.get("sym")),
    )


def _read_packed(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Return the parts of every packed layer, by the layer's name."""
    found: dict[str, dict[str, Tensor]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            layer, _, part = name.rpartition(".")
            if part in PARTS:
                found.setdefault(layer, {})[part] = tensor
    return found


def _sum_products(
    model: Any, linears: dict[str, nn.Module], rows: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Return X^T X of the inputs of each layer, (in, in)."""
    sums: dict[str, Tensor] = {}

    def listen(name: str) -> Any:
        def see(_: nn.Module, args: Any) -> None:
            inputs = args[0].flatten(0, -2).double()
            sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + inputs.T @ inputs

        return see

    hooks = [linear.register_forward_pre_hook(listen(name)) for name, linear in linears.items()]
    for row in rows:
        model(input_ids=row, use_cache=False)
    for hook in hooks:
        hook.remove()
    return sums


def _replay(
    model: Any,
    linears: dict[str, Any],
    packed: dict[str, dict[str, Tensor]],
    form: _Format,
    rows: Sequence[Tensor],
) -> dict[str, float]:
    """Pack one block after the other, and return what each does to its own layers' outputs.

    The layers of a block read what the packed blocks before it put out, within it nothing is packed
    yet: these are the inputs that GPTQ is to make good the error on.
    """
    blocks: dict[str, dict[str, Any]] = {}
    for name, linear in linears.items():
        found = _BLOCK.match(name)
        blocks.setdefault(found[0] if found else name, {})[name] = linear
    errors = {}
    for members in blocks.values():
        products = _sum_products(model, members, rows)
        for name, linear in members.items():
            values = _values(packed[name], form)
            errors[name] = _error(values - linear.weight.T.double(), products[name])
            linear.weight.data = values.T.to(linear.weight.dtype)
    return errors


def _values(parts: dict[str, Tensor], form: _Format) -> Tensor:
    """Return what the levels of a layer stand for, (in, out)."""
    levels, zero, scale = _read_grid(parts, form)
    return (levels - zero) * scale


def _read_grid(parts: dict[str, Tensor], form: _Format) -> tuple[Tensor, Tensor, Tensor]:
    """Return levels, zeros and scales of every weight, each (in, out)."""
    levels = unpack_words(_words(parts["qweight"]), form.bits)
    zeros = unpack_words(_words(parts["qzeros"].T.contiguous()), form.bits).T
    group = parts["g_idx"].long()
    zero = torch.from_numpy(zeros.copy()).double()[group] + form.stored_less
    return torch.from_numpy(levels).double(), zero, parts["scales"].double()[group]


def _words(tensor: Tensor) -> Any:
    return tensor.numpy().view(np.uint32)


def _measure(
    name: str,
    weight: Tensor,
    parts: dict[str, Tensor],
    product: Tensor,
    form: _Format,
) -> PackedLayer:
    bits = form.bits
    levels, zero, scale = _read_grid(parts, form)
    group = parts["g_idx"].long()
    exact = weight.T.double()
    nearest = (exact / scale + zero).round().clamp(0, 2**bits - 1)
    off = (levels - zero) - exact / scale
    return PackedLayer(
        name=name,
        error=_error((levels - zero) * scale - exact, product),
        rounding_error=_error((nearest - zero) * scale - exact, product),
        bias=float(off.mean()),
        reach=_reach(exact, parts["scales"].double(), group, form),
    )


def _reach(exact: Tensor, scales: Tensor, group: Tensor, form: _Format) -> float:
    """Return the median, over all groups, of what the levels span over what the weights do.

    Args:
        exact: the base's weights, (in, out).
        scales: of every group, (groups, out).
        group: of every input, (in,).
        form: what the folder declares.
    """
    shares = []
    for number, scale in enumerate(scales):
        weights = exact[group == number]
        high, low = weights.amax(0).clamp(min=0), weights.amin(0).clamp(max=0)
        span = 2 * torch.maximum(high, -low) if form.is_symmetric else high - low
        shares.append((scale * (2**form.bits - 1) / span)[span > 0])
    return float(torch.cat(shares).median())


def _error(difference: Tensor, product: Tensor) -> float:
    """Return the squared change of a layer's output, for a difference (in, out)."""
    return float((difference * (product @ difference)).sum())
