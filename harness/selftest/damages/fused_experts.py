"""Damages of merges into fused experts: the change of another one, axes exchanged, one left out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.selftest.edit import edit_tensors
from harness.selftest.registry import Patient, damage

MERGED = "peft-merged-experts"


def _load(folder: Path) -> Mapping[str, Any]:
    from safetensors.torch import load_file

    (path,) = folder.glob("*.safetensors")
    found: Mapping[str, Any] = load_file(path)
    return found


def _name(layer: int, expert: int, part: str) -> str:
    return f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{part}.weight"


@damage("experts-changes-swapped", patient=MERGED, mode="FM62", probe="merge-experts-wrong")
def swap(patient: Patient) -> None:
    """Give two experts each other's change."""
    old = _load(patient.options["base"])

    def change(tensors: dict[str, Any]) -> None:
        for part in ("w1", "w2", "w3"):
            one, two = _name(1, 0, part), _name(1, 2, part)
            first, second = tensors[one] - old[one], tensors[two] - old[two]
            tensors[one], tensors[two] = old[one] + second, old[two] + first

    edit_tensors(patient.path, change)


@damage("experts-one-left-out", patient=MERGED, mode="FM62", probe="merge-experts-wrong")
def leave_out(patient: Patient) -> None:
    """Leave one expert as it was in the base."""
    old = _load(patient.options["base"])

    def change(tensors: dict[str, Any]) -> None:
        for part in ("w1", "w2", "w3"):
            tensors[_name(2, 3, part)] = old[_name(2, 3, part)].clone()

    edit_tensors(patient.path, change)


@damage("experts-axes-exchanged", patient=MERGED, mode="FM62", probe="merge-experts-wrong")
def exchange(patient: Patient) -> None:
    """Read B as if the ranks of each expert lay side by side."""
    old, factors = _load(patient.options["base"]), _load(patient.options["adapter"])

    def change(tensors: dict[str, Any]) -> None:
        for layer in range(3):
            stem = f"base_model.model.model.layers.{layer}.mlp.experts.lora_"
            a, b = factors[f"{stem}A.weight"], factors[f"{stem}B.weight"]
            if a.shape[1] != 48:
                stem = stem.replace("experts.", "experts.base_layer.")
                a, b = factors[f"{stem}A.weight"], factors[f"{stem}B.weight"]
            for expert in range(4):
                name = _name(layer, expert, "w2")
                left = b.reshape(len(b), 4, 2)[:, expert, :]
                tensors[name] = old[name] + 2 * (left @ a.reshape(4, 2, -1)[expert])

    edit_tensors(patient.path, change)
