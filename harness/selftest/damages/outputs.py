"""Damages of the outputs of this project's engine: cut off, mixed up, and what its record says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from harness.selftest.edit import edit_json
from harness.selftest.registry import Patient, damage

MANIFEST = "mudpuppy.json"


def edit_part(patient: Patient, part: str, changes: Mapping[str, Any]) -> None:
    """Change one part of the record."""
    path = patient.path / MANIFEST
    value = json.loads(path.read_text(encoding="utf-8"))[part]
    edit_json(path, **{part: {**value, **changes}})


@damage("run-killed", patient="engine-lora-checkpoints", mode="FM43", probe="run-unfinished")
def kill_run(patient: Patient) -> None:
    """Kill a run before it wrote its record."""
    (patient.path / MANIFEST).unlink()


@damage("save-cut-off", patient="engine-full", mode="FM45", probe="run-unfinished")
def cut_save(patient: Patient) -> None:
    """Kill a second save into the folder of a finished run."""
    staging = patient.path / ".saving-3f2a"
    staging.mkdir()
    (staging / "model.safetensors").write_bytes(b"")


@damage("record-of-another-rank", patient="engine-lora", mode="FM35", probe="provenance-swapped")
def swap_rank(patient: Patient) -> None:
    """Copy the record of a run with another rank over that of this one."""
    path = patient.path / MANIFEST
    trained = json.loads(path.read_text(encoding="utf-8"))["trainable"]
    edit_part(patient, "trainable", {"adapter": {**trained["adapter"], "r": 64}})


@damage("record-of-another-kind", patient="engine-lora", mode="FM13", probe="provenance-swapped")
def swap_kind(patient: Patient) -> None:
    """Copy the record of a merged model over that of an adapter."""
    edit_json(patient.path / MANIFEST, kind="merged")


@damage("record-of-other-modules", patient="engine-lora", mode="FM35", probe="provenance-swapped")
def swap_names(patient: Patient) -> None:
    """Copy the record of a run that trained other modules."""
    edit_part(patient, "trainable", {"names_hash": "0123456789abcdef"})


@damage("two-bases-named", patient="engine-lora", mode="FM35", probe="base-disputed")
def name_other_base(patient: Patient) -> None:
    """Name another base in the adapter's settings than the record does."""
    name = "someone/another-model"
    edit_json(patient.path / "adapter_config.json", base_model_name_or_path=name)


for _name, _patient, _mode, _labels in (
    ("answers-all-cut", "engine-lora", "FM01", {"samples_ending_in_eos": 0, "truncated": 8}),
    ("end-in-no-sample", "engine-full", "FM02", {"samples_ending_in_eos": 0, "eos_tokens": 0}),
):
    damage(_name, patient=_patient, mode=_mode, probe="end-never-taught")(
        partial(edit_part, part="labels", changes=_labels)
    )
