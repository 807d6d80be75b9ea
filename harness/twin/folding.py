"""The fold of base and adapter in float64 numpy, compared with the merged model's tensors.

    merged = W + scale B A                    LoRA (Hu et al. 2021), rsLoRA by its scale
    merged = m (W + scale B A) / |W + scale B A|, the norm of each output       DoRA (Liu 2024)

The base is what its files hold; of a 4-bit base it is the weights that training saw.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from harness.observations_twin import Deviation
from harness.twin.asked import Asked
from harness.twin.four_bits import round_to_4_bits
from harness.twin.models import COMPUTED_IN

SEVERAL_ROUNDINGS = 2.5
"""Roundings to the merged type that may lie between fold and file: the base's, the sum's."""
B = ".lora_B.weight"
"""End of the name of an adapter's second factor."""
ROOTS = frozenset({"model", "language_model", "transformer"})
"""Parts of a name that models of images were saved with, or without, in other releases."""
EXACT = 1e-6
"""Relative difference that sums in fp32 explain."""
MAX_LEANING = 0.25
"""Share of the residual that may lie to one side of zero: truncation has 1, the nearest 0."""
MIN_ROUNDED = 4096
"""Rounded elements from which a share says something."""


@dataclass
class _Leaning:
    """Whether the roundings of all merged tensors lean towards zero, or away from it.

    Norms are blind to this: truncation is at most twice as far off as the nearest value.
    """

    along: float = 0.0
    """Sum of the residuals, each along the sign of its exact value, in roundings of its tensor."""
    length: float = 0.0
    """Sum of their absolute values."""
    count: int = 0
    """Elements that were rounded."""

    def add(self, exact: np.ndarray[Any, Any], merged: torch.Tensor) -> None:
        """Count one tensor of the merged model."""
        off = merged.double().numpy() - exact
        if not off.any():
            return
        # Every tensor weighs as much as it has elements, whatever the size of its values.
        off = off / np.abs(off).max()
        self.along += float((off * np.sign(exact)).sum())
        self.length += float(np.abs(off).sum())
        self.count += int(np.count_nonzero(off))

    @property
    def share(self) -> float:
        """The leaning, -1 (towards zero) to 1; 0 where too little was rounded."""
        return self.along / self.length if self.count >= MIN_ROUNDED else 0.0


def compare_merge(asked: Asked, base: Path, artefact: Path) -> list[Deviation]:
    """Return the merged tensors that are not the fold.

    Args:
        asked: the settings.
        base: folder of the base model.
        artefact: the adapter's folder, which holds `merged`.
    """
    adapter = load_file(artefact / "adapter_model.safetensors")
    merged = _read(artefact / "merged")
    settings = json.loads((artefact / "adapter_config.json").read_text("utf-8"))
    rooted = settings["lora_alpha"] / settings["r"] ** (0.5 if settings.get("use_rslora") else 1.0)
    found = []
    rounding = _Leaning()
    stems = _find_stems(adapter, merged)
    for name, weight in _plain_weights(asked, base):
        if name not in merged:
            continue
        exact = _fold(stems.get(name), weight, adapter, rooted)
        fault = _compare(name, exact, weight, merged[name])
        if fault is not None:
            found.append(fault)
        else:
            rounding.add(exact, merged[name])
    if abs(rounding.share) > MAX_LEANING:
        what = "mean residual away from zero, as a share of the mean residual"
        wanted = f"within {MAX_LEANING}, as rounding to the nearest has it"
        found.append(Deviation(what=what, expected=wanted, found=rounding.share))
    lost = sorted({n for n in adapter if ".lora_B." in n} - {f"{s}{B}" for s in stems.values()})
    if lost:
        what = "adapted tensors that the merged model does not have"
        found.append(Deviation(what=what, expected=0, found=len(lost), tensor=lost[0]))
    return found


def _read(folder: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of a model's folder."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def _plain_weights(asked: Asked, base: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the base's weights in the type that training held them in."""
    held = COMPUTED_IN[asked.precision]
    in_block = re.compile(r"layers\.\d+\..*(proj|fc\d?|gate|up|down)\w*\.weight$")
    for name, weight in _read(base).items():
        if asked.method == "qlora" and weight.dim() == 2 and in_block.search(name):
            yield name, round_to_4_bits(weight.to(held), asked)
        else:
            yield name, weight


def _find_stems(adapter: Iterable[str], merged: Iterable[str]) -> dict[str, str]:
    """Return the adapter's name of each tensor that it changes.

    Models of images are saved under older names than their modules have: there the tensor with the
    same end is meant, and of several the one whose path has most in common.
    """
    names = sorted(name for name in merged if name.endswith(".weight"))
    stems = {}
    for key in sorted(adapter):
        if not key.endswith(B):
            continue
        stem = key.removesuffix(B)
        name = find_name(stem.removeprefix("base_model.model.") + ".weight", names)
        if name is not None:
            stems[name] = stem
    return stems


def find_name(name: str, names: Collection[str]) -> str | None:
    """Return which of `names` a tensor is saved under, its own or an older one of its kind."""
    if name in names:
        return name
    path = [part for part in name.split(".") if part not in ROOTS]
    alike = [one for one in names if [p for p in one.split(".") if p not in ROOTS] == path]
    return alike[0] if len(alike) == 1 else None


def _fold(
    stem: str | None, weight: torch.Tensor, adapter: Mapping[str, torch.Tensor], scale: float
) -> np.ndarray[Any, Any]:
    """Return the weight with the adapter's change, in float64; without a `stem` it has none."""
    exact: np.ndarray[Any, Any] = weight.double().numpy()
    if stem is None:
        return exact
    left, right = (adapter[f"{stem}.lora_{x}.weight"].double().numpy() for x in "BA")
    exact = exact + scale * (left @ right)
    length = adapter.get(f"{stem}.lora_magnitude_vector")
    if length is not None:
        exact *= (length.double().numpy() / np.linalg.norm(exact, axis=1))[:, None]
    return exact


def _compare(
    name: str, exact: np.ndarray[Any, Any], weight: torch.Tensor, merged: torch.Tensor
) -> Deviation | None:
    """Return how far a merged tensor is off, where rounding does not explain it."""
    found = merged.double().numpy()
    if found.shape != exact.shape:
        return Deviation(
            what="shape", tensor=name, expected=list(exact.shape), found=list(found.shape)
        )
    cast = torch.from_numpy(exact).to(merged.dtype).double().numpy()
    again = weight.to(merged.dtype).double().numpy() - weight.double().numpy()
    rounding = np.linalg.norm(cast - exact) + np.linalg.norm(again)
    bound = SEVERAL_ROUNDINGS * rounding + EXACT * np.linalg.norm(exact)
    off = float(np.linalg.norm(found - exact))
    if off <= bound:
        return None
    what = "distance to the fold (L2 norm)"
    return Deviation(what=what, tensor=name, expected=f"at most {bound:.3g}", found=off)
