"""Damages of merges: no effect, applied twice, scaled, rounded, drifted, on another base."""

from __future__ import annotations

import shutil
from functools import partial
from typing import Any

from harness.selftest.edit import Tensors, edit_json, edit_tensors, find_weights
from harness.selftest.make import save_merge
from harness.selftest.registry import Patient, damage


def merge_times(patient: Patient, factor: float) -> None:
    """Apply the adapter `factor` times."""
    from safetensors.torch import load_file

    old = load_file(find_weights(patient.options["base"]))

    def change(tensors: Tensors) -> Tensors:
        return {
            key: (old[key] + factor * (value.float() - old[key])).to(value.dtype)
            for key, value in tensors.items()
        }

    edit_tensors(patient.path, change)


def add_noise(patient: Patient, part: str, size: float) -> None:
    """Move the tensors whose name holds `part` at random, by a share of their spread."""
    import torch

    def change(tensors: Tensors) -> Tensors:
        torch.manual_seed(5)
        return {
            key: (value + size * torch.randn_like(value)) if part in key else value
            for key, value in tensors.items()
        }

    edit_tensors(patient.path, change)


def round_int4(weight: Any, block_size: int = 16) -> Any:
    """Return a matrix after blockwise symmetric int4, written independently of the engine."""
    import torch

    made = weight.float().clone()
    for start in range(0, made.shape[1], block_size):
        block = made[:, start : start + block_size]
        scale = block.abs().amax(dim=1, keepdim=True) / 7
        made[:, start : start + block_size] = torch.clamp(torch.round(block / scale), -7, 7) * scale
    return made.to(weight.dtype)


def scale(patient: Patient, name: str, factor: float) -> None:
    """Multiply one tensor."""
    edit_tensors(patient.path, lambda tensors: {**tensors, name: tensors[name] * factor})


# --- how often, how much (FM20, FM54, FM19, FM26) ------------------------------------------------

for _name, _patient, _factor, _mode, _probe in (
    ("merge-no-op", "peft-merged", 0.0, "FM20", "merge-without-effect"),
    ("merge-no-op-all", "peft-merged-qwen2", 0.0, "FM54", "merge-without-effect"),
    ("merge-no-op-dora", "peft-merged-some-layers", 0.0, "FM20", "merge-without-effect"),
    ("merge-twice", "peft-merged", 2.0, "FM19", "merge-applied-twice"),
    ("merge-twice-mistral", "peft-merged-mistral", 2.0, "FM20", "merge-applied-twice"),
    ("merge-half", "peft-merged", 0.5, "FM26", "merge-wrongly-scaled"),
    ("merge-four-times", "peft-merged", 4.0, "FM26", "merge-wrongly-scaled"),
    ("merge-negative", "peft-merged", -1.0, "FM26", "merge-wrongly-scaled"),
    ("merge-third-qwen2", "peft-merged-qwen2", 0.35, "FM26", "merge-wrongly-scaled"),
):
    damage(_name, patient=_patient, mode=_mode, probe=_probe)(partial(merge_times, factor=_factor))


def merge_otherwise(patient: Patient, **settings: Any) -> None:
    """Merge with other settings of the adapter than it was trained with."""
    adapter = patient.path.parent / "otherwise"
    shutil.copytree(patient.options["adapter"], adapter)
    edit_json(adapter / "adapter_config.json", **settings)
    shutil.rmtree(patient.path)
    save_merge(patient.path, patient.options["base"], adapter)


for _name, _patient, _settings in (
    ("merge-ignores-rslora", "peft-merged-rslora", {"use_rslora": False}),
    ("merge-ignores-alpha", "peft-merged", {"lora_alpha": 4}),
    ("merge-ignores-alpha-pattern", "peft-merged-alpha-pattern", {"alpha_pattern": {}}),
):
    damage(_name, patient=_patient, mode="FM26", probe="merge-wrongly-scaled")(
        partial(merge_otherwise, **_settings)
    )


@damage(
    "copy-of-the-base",
    patient="transformers-full-fine-tune",
    mode="FM20",
    probe="merge-without-effect",
)
def copy_base(patient: Patient) -> None:
    """Save the base in place of the fine-tune."""
    shutil.copy(find_weights(patient.options["base"]), find_weights(patient.path))


# --- what should not have moved (FM13, FM52, FM61, FM35) -----------------------------------------


def round_merge(patient: Patient, part: str) -> None:
    """Round what was merged through 4 bits."""
    edit_tensors(
        patient.path,
        lambda tensors: {
            key: round_int4(value) if part in key else value for key, value in tensors.items()
        },
    )


for _name, _patient, _part in (
    ("merge-rounded", "peft-merged", "_proj"),
    ("merge-rounded-qwen2", "peft-merged-qwen2", "_proj.weight"),
):
    damage(
        _name,
        patient=_patient,
        mode="FM13",
        probe="merge-rounded",
        also=("frozen-weights-changed",),
    )(partial(round_merge, part=_part))


@damage("merge-rounded-targets", patient="peft-merged", mode="FM13", probe="merge-rounded")
def round_targets(patient: Patient) -> None:
    """Round only what the adapter changed."""
    round_merge(patient, "q_proj")
    round_merge(patient, "v_proj")


damage("frozen-norm-moved", patient="peft-merged", mode="FM52", probe="frozen-weights-changed")(
    partial(scale, name="model.layers.1.input_layernorm.weight", factor=1.05)
)
damage("frozen-head-moved", patient="peft-merged", mode="FM52", probe="frozen-weights-changed")(
    partial(add_noise, part="lm_head", size=1e-3)
)
damage(
    "frozen-layer-moved",
    patient="peft-merged-some-layers",
    mode="FM52",
    probe="frozen-weights-changed",
)(partial(add_noise, part="layers.1.mlp", size=1e-3))
damage(
    "exploded",
    patient="peft-merged",
    mode="FM61",
    probe="weights-exploded",
    also=("frozen-weights-changed",),
)(partial(scale, name="model.layers.1.mlp.up_proj.weight", factor=40.0))
damage(
    "exploded-fine-tune",
    patient="transformers-full-fine-tune",
    mode="FM61",
    probe="weights-exploded",
)(partial(scale, name="model.layers.0.mlp.down_proj.weight", factor=100.0))
damage("another-revision", patient="peft-merged", mode="FM35", probe="base-mismatch")(
    partial(add_noise, part="model.", size=1e-3)
)


@damage("another-base", patient="peft-merged", mode="FM35", probe="base-mismatch")
def take_other_base(patient: Patient) -> Patient:
    """Ask about a merge with another base of the same shapes."""
    other = patient.path.parent / "other"
    shutil.copytree(patient.options["base"], other)
    mine = Patient(path=other)
    add_noise(mine, "", 0.02)
    return patient.asking(base=other)


@damage("wider-base", patient="peft-lora", mode="FM35", probe="base-mismatch")
def widen_base(patient: Patient) -> Patient:
    """Ask about an adapter with a base of other shapes."""
    wider = patient.path.parent / "wider"
    shutil.copytree(patient.options["base"], wider)
    edit_tensors(
        wider,
        lambda tensors: {
            key: value.repeat(2, 1) if "q_proj" in key else value for key, value in tensors.items()
        },
    )
    return patient.asking(base=wider)
