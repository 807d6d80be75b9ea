"""Damages of merged models: no effect, twice, a wrong scale, rounded, another adapter, in part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.selftest.edit import Tensors, edit_json, edit_tensors
from harness.selftest.registry import Patient, damage

SCALED, NONE = "merge-wrongly-scaled", "merge-without-effect"
ROUNDED, ANOTHER = "merge-rounded", "merge-carries-another"


def _load(folder: Any) -> Tensors:
    from safetensors.torch import load_file

    found: Tensors = load_file(folder / "model.safetensors")
    return found


def _remerge(patient: Patient, factor: Callable[[str], float]) -> None:
    """Merge again, with a factor for every tensor."""
    base = _load(patient.options["base"])
    edit_tensors(patient.path, lambda t: {k: base[k] + factor(k) * (t[k] - base[k]) for k in t})


def _is_target(name: str) -> bool:
    return "q_proj" in name or "v_proj" in name


def _low_rank(like: Any, rank: int, size: float, seed: int) -> Any:
    import torch

    random = torch.Generator().manual_seed(seed)
    left = torch.randn(like.shape[0], rank, generator=random)
    return left @ torch.randn(rank, like.shape[1], generator=random) * size


@damage("merged-not-at-all", patient="peft-merged", mode="FM20", probe=NONE)
def merge_nothing(patient: Patient) -> None:
    """Save the base: the result of merge_and_unload() was not kept."""
    _remerge(patient, lambda name: 0.0)


@damage("fused-not-at-all", patient="peft-merged", mode="FM54", probe=NONE)
def fuse_nothing(patient: Patient) -> Patient:
    """Save the base, where the adapter is not at hand."""
    _remerge(patient, lambda name: 0.0)
    return Patient(path=patient.path, options={"base": patient.options["base"]})


@damage("merged-in-part", patient="peft-merged", mode="FM20", probe=NONE)
def merge_in_part(patient: Patient) -> None:
    """Merge the query projections alone."""
    _remerge(patient, lambda name: float("q_proj" in name))


@damage("merged-twice", patient="peft-merged", mode="FM19", probe="merge-applied-twice")
def merge_twice(patient: Patient) -> None:
    """Apply the adapter to what has it already."""
    _remerge(patient, lambda name: 2.0)


@damage("merged-subtracted", patient="peft-merged", mode="FM26", probe=SCALED)
def subtract(patient: Patient) -> None:
    """Unmerge what was never merged."""
    _remerge(patient, lambda name: -1.0)


@damage("merged-alpha-alone", patient="peft-merged", mode="FM26", probe=SCALED)
def merge_with_alpha_alone(patient: Patient) -> None:
    """Forget to divide by the rank."""
    _remerge(patient, lambda name: 4.0)


@damage("merged-alpha-ignored", patient="peft-merged", mode="FM26", probe=SCALED)
def merge_without_scale(patient: Patient) -> None:
    """Add B A as it is."""
    _remerge(patient, lambda name: 0.5)


@damage("merged-axes-exchanged", patient="peft-merged", mode="FM62", probe=SCALED)
def merge_transposed(patient: Patient) -> None:
    """Exchange rows and columns of the change in the square weights."""
    base = _load(patient.options["base"])

    def turn(tensors: Tensors) -> Tensors:
        return {k: base[k] + (v - base[k]).T if "q_proj" in k else v for k, v in tensors.items()}

    edit_tensors(patient.path, turn)


@damage("merged-then-rounded", patient="peft-merged", mode="FM13", probe=ROUNDED)
def round_targets(patient: Patient) -> None:
    """Quantise the merged weights again."""
    edit_tensors(
        patient.path, lambda t: {k: _four_bits(v) if _is_target(k) else v for k, v in t.items()}
    )


@damage("merged-all-rounded", patient="peft-merged", mode="FM13", probe=ROUNDED)
def round_all(patient: Patient) -> None:
    """Quantise every linear layer after the merge."""
    edit_tensors(
        patient.path,
        lambda t: {k: _four_bits(v) if "_proj" in k else v for k, v in t.items()},
    )


@damage("merged-on-four-bits", patient="peft-merged", mode="FM13", probe=ROUNDED)
def merge_on_four_bits(patient: Patient) -> None:
    """Merge into the dequantised twin of the base."""
    base = _load(patient.options["base"])
    edit_tensors(
        patient.path,
        lambda t: {
            k: v - base[k] + _four_bits(base[k]) if "_proj" in k else v for k, v in t.items()
        },
    )


def _four_bits(values: Any) -> Any:
    """Return a matrix after 4 bits and back, in blocks of 32 of a row."""
    blocks = values.reshape(-1, 32)
    scale = blocks.abs().amax(dim=1, keepdim=True) / 7
    return ((blocks / scale).round().clamp(-7, 7) * scale).reshape(values.shape)


@damage("merged-on-another-stage", patient="peft-merged", mode="FM36", probe=ANOTHER)
def merge_on_another_stage(patient: Patient) -> None:
    """Merge onto the result of another adapter of the same modules."""
    edit_tensors(
        patient.path,
        lambda t: {k: v + _low_rank(v, 3, 0.003, 7) if _is_target(k) else v for k, v in t.items()},
    )


@damage("merged-on-wider-stage", patient="peft-merged", mode="FM36", probe=ANOTHER)
def merge_on_wider_stage(patient: Patient) -> None:
    """Merge onto the result of an adapter that had other modules too."""
    edit_tensors(
        patient.path,
        lambda t: {k: v + _low_rank(v, 3, 0.003, 7) if "_proj" in k else v for k, v in t.items()},
    )


@damage("merged-another-adapter", patient="peft-merged", mode="FM35", probe=ANOTHER)
def merge_another(patient: Patient) -> None:
    """Merge another adapter than the one that lies there."""
    base = _load(patient.options["base"])
    edit_tensors(
        patient.path,
        lambda t: {
            k: base[k] + _low_rank(v, 3, 0.01, 9) if _is_target(k) else v for k, v in t.items()
        },
    )


@damage(
    "merged-with-drifted-layer",
    patient="peft-merged",
    mode="FM52",
    probe="frozen-weights-beside-low-rank",
)
def move_frozen_layer(patient: Patient) -> Patient:
    """Train one frozen matrix along, where the adapter is not at hand."""
    import torch

    torch.manual_seed(3)
    name = "model.layers.1.mlp.up_proj.weight"
    edit_tensors(
        patient.path,
        lambda t: {k: v + 0.002 * torch.randn_like(v) if k == name else v for k, v in t.items()},
    )
    return Patient(path=patient.path, options={"base": patient.options["base"]})


def _save_other_base(patient: Patient, noise: float) -> Any:
    """Save the base with an earlier stage, or other values, in it, beside the patient."""
    import shutil

    import torch

    folder = patient.path / "stage"
    shutil.copytree(patient.options["base"], folder)

    def change(tensors: Tensors) -> Tensors:
        torch.manual_seed(11)
        return {
            k: v + (_low_rank(v, 3, 0.003, 7) if not noise else noise * torch.randn_like(v))
            if "_proj" in k
            else v
            for k, v in tensors.items()
        }

    edit_tensors(folder, change)
    return folder


@damage(
    "merged-without-the-stage-before",
    patient="peft-merged",
    mode="FM36",
    probe="base-not-the-named-one",
)
def leave_stage_out(patient: Patient) -> Patient:
    """Merge into the original base an adapter that was trained on the stage after it."""
    import shutil

    stage = _save_other_base(patient, 0.0)
    adapter = patient.path / "adapter"
    shutil.copytree(patient.options["adapter"], adapter)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(stage))
    return patient.asking(adapter=adapter)


@damage(
    "adapter-with-another-base", patient="peft-lora", mode="FM35", probe="base-not-the-named-one"
)
def pass_another_base(patient: Patient) -> Patient:
    """Look at an adapter with a base of the same shapes and other weights."""
    return patient.asking(base=_save_other_base(patient, 0.02))
