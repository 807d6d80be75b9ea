"""Damages of adapters: untrained, dead, stacked, half."""

from __future__ import annotations

from harness.selftest.edit import edit_tensors, rename_tensors
from harness.selftest.registry import Patient, damage


@damage("lora-b-zero", patient="peft-lora", mode="FM08", probe="adapter-never-trained")
def zero_lora_b(patient: Patient) -> None:
    """Leave every lora_B as `get_peft_model` makes it."""
    edit_tensors(
        patient.path, lambda tensors: {k: v * ("lora_B" not in k) for k, v in tensors.items()}
    )


@damage("adapter-compiled", patient="peft-lora", mode="FM22", probe="wrapper-prefix-left")
def compile_adapter(patient: Patient) -> None:
    """Save the state of the compiled wrapper."""
    rename_tensors(patient.path, "base_model.model.", "base_model.model._orig_mod.")
