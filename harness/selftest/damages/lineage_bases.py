"""Damages that a base tells without an adapter: another base, one matrix drawn at random."""

from __future__ import annotations

import shutil
from functools import partial
from typing import Any

from harness.selftest.edit import Tensors, edit_json, edit_tensors
from harness.selftest.registry import Patient, damage

STRANGER = "matrix-unlike-its-base"


def _draw(values: Any, seed: int) -> Any:
    """Return random values of the same shape, type and standard deviation."""
    import torch

    random = torch.Generator().manual_seed(seed)
    fresh = (
        torch.randn(values.shape, generator=random) * values.float().std() + values.float().mean()
    )
    return fresh.to(values.dtype)


def _copy_drawn(patient: Patient) -> Any:
    """Save a model of the same shapes that was drawn with another seed."""
    folder = patient.path.parent / "drawn"
    shutil.copytree(patient.options["base"], folder)

    def redraw(tensors: Tensors) -> Tensors:
        return {
            name: _draw(value, number) if value.dim() > 1 else value
            for number, (name, value) in enumerate(tensors.items())
        }

    edit_tensors(folder, redraw)
    return folder


@damage("merged-drawn-base", patient="peft-merged", mode="FM35", probe="base-mismatch")
def ask_with_drawn_base(patient: Patient) -> Patient:
    """Name an unrelated model of the same shapes as the base, where no adapter is at hand."""
    return Patient(path=patient.path, options={"base": _copy_drawn(patient)})


@damage(
    "tuned-drawn-base", patient="transformers-full-fine-tune", mode="FM35", probe="base-mismatch"
)
def ask_tuned_with_drawn_base(patient: Patient) -> Patient:
    """Name an unrelated model as the base of a full fine-tune."""
    return patient.asking(base=_copy_drawn(patient))


def _redraw(patient: Patient, *, name: str, known: bool) -> Patient:
    """Draw one matrix at random, with or without the adapter at hand."""
    edit_tensors(patient.path, lambda t: {k: _draw(v, 5) if k == name else v for k, v in t.items()})
    if known:
        return patient
    return Patient(path=patient.path, options={"base": patient.options["base"]})


damage("merged-one-redrawn", patient="peft-merged", mode="FM34", probe=STRANGER)(
    partial(_redraw, name="model.layers.1.self_attn.q_proj.weight", known=False)
)
damage("merged-frozen-redrawn", patient="peft-merged", mode="FM34", probe=STRANGER)(
    partial(_redraw, name="model.layers.1.mlp.up_proj.weight", known=False)
)
damage("merged-target-redrawn", patient="peft-merged", mode="FM34", probe=STRANGER)(
    partial(_redraw, name="model.layers.1.self_attn.q_proj.weight", known=True)
)
damage("tuned-one-redrawn", patient="transformers-full-fine-tune", mode="FM34", probe=STRANGER)(
    partial(_redraw, name="model.layers.0.mlp.down_proj.weight", known=True)
)


@damage("base-is-relative", patient="peft-lora", mode="FM35", probe="base-named-loosely")
def name_relative_base(patient: Patient) -> Patient:
    """Name the base by a folder that is found from one place alone."""
    shutil.copytree(patient.options["base"], patient.path / "base")
    edit_json(patient.path / "adapter_config.json", base_model_name_or_path="./base", revision="x")
    return patient


@damage("base-is-elsewhere", patient="peft-lora", mode="FM35", probe="base-named-loosely")
def name_absent_base(patient: Patient) -> Patient:
    """Name the base by a relative path of another place."""
    edit_json(
        patient.path / "adapter_config.json", base_model_name_or_path="a/b/base", revision="x"
    )
    return patient
