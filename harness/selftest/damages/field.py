"""Damages as strangers make them, each of which the doctor once missed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from harness.selftest.edit import Tensors, edit_json, edit_tensors
from harness.selftest.records import edit_history
from harness.selftest.registry import Patient, damage

MISSING, LOST = "missing-tensors", "adapter-layers-missing"


def _drop(folder: Path, word: str) -> None:
    edit_tensors(folder, lambda t: {name: v for name, v in t.items() if word not in name})


@damage(
    "field-value-head-wrapper",
    patient="transformers-llama",
    mode="FM23",
    probe="wrapper-prefix-left",
)
def keep_wrapper_of_trl(patient: Patient) -> None:
    """Save the state dict of TRL's model with a value head: `pretrained_model.` stays in front."""
    edit_tensors(patient.path, lambda t: {f"pretrained_model.{name}": v for name, v in t.items()})


@damage(
    "field-adapter-pickle-of-nothing",
    patient="peft-lora-all-linear",
    mode="FM24",
    probe="weights-file-unreadable",
)
def save_empty_pickle(patient: Patient) -> None:
    """Save what a sharded run had gathered: nothing, in some hundred bytes."""
    import torch

    (patient.path / "adapter_model.safetensors").unlink()
    torch.save({}, patient.path / "adapter_model.bin")


@damage(
    "field-head-dropped-and-tied",
    patient="peft-merged-all-linear",
    mode="FM27",
    probe="tied-embedding-diverged",
)
def drop_head_and_tie(patient: Patient) -> None:
    """Drop the head of an untied model as if it were shared, and say that it is."""
    _drop(patient.path, "lm_head")
    edit_json(patient.path / "config.json", tie_word_embeddings=True)


@damage("field-head-target-dropped", patient="peft-lora-head", mode="FM28", probe=LOST)
def drop_adapted_head(patient: Patient) -> None:
    """Leave the factors of the head out, which the targets name (vllm#9280)."""
    _drop(patient.path, "lm_head")


@damage("field-final-norm-lost", patient="transformers-gpt2", mode="FM34", probe=MISSING)
def lose_final_norm(patient: Patient) -> None:
    """Lose the final norm of a family whose layers are called otherwise."""
    _drop(patient.path, "ln_f")


@damage("field-projector-lost", patient="transformers-llava", mode="FM34", probe=MISSING)
def lose_projector(patient: Patient) -> None:
    """Lose what brings images into the language model."""
    _drop(patient.path, "projector")


@damage("field-qwen2-without-biases", patient="transformers-qwen2", mode="FM46", probe=MISSING)
def claim_another_family(patient: Patient) -> None:
    """Call a model without biases a Qwen2, which has them in every layer."""
    _drop(patient.path, "proj.bias")


@damage(
    "field-own-int8",
    patient="transformers-llama",
    mode="FM33",
    probe="quantisation-undeclared",
)
def quantise_in_own_words(patient: Patient) -> None:
    """Store levels and scales under names of one's own, and declare nothing."""
    edit_tensors(patient.path, _to_int8)


def _to_int8(tensors: Tensors) -> Tensors:
    import torch

    made: Tensors = {}
    for name, value in tensors.items():
        if not name.endswith("proj.weight"):
            made[name] = value
            continue
        scale = value.abs().max() / 127
        made[f"{name}_int8"] = torch.round(value / scale).to(torch.int8)
        made[name.replace(".weight", ".scale")] = scale.reshape(1)
    return made


@damage(
    "field-embedding-moved",
    patient="peft-merged-all-linear",
    mode="FM52",
    probe="frozen-weights-changed",
)
def move_embedding(patient: Patient) -> None:
    """Move the embedding of a merge by a little, and leave its head the base's."""
    edit_tensors(
        patient.path, lambda t: {n: v * 1.01 if "embed_tokens" in n else v for n, v in t.items()}
    )


@damage(
    "field-tenfold",
    patient="peft-merged-all-linear",
    mode="FM61",
    probe="weights-exploded",
    also=(
        "merge-wrongly-scaled",
        "merge-rounded",
        "frozen-weights-changed",
        "layer-off-its-siblings",
    ),
)
def multiply_by_ten(patient: Patient) -> None:
    """Multiply one matrix by ten, in the type of the file."""
    edit_tensors(
        patient.path,
        lambda t: {n: v * 10 if "layers.1.mlp.down_proj" in n else v for n, v in t.items()},
    )


@damage("field-loss-falls-silent", patient="record-sft", mode="FM09", probe="loss-zero")
def fall_silent(patient: Patient) -> None:
    """Lose every label half way through a run: loss and gradient are exactly 0 from there."""

    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows[len(rows) // 2 :]:
            row["loss"] = row["grad_norm"] = 0.0

    edit_history(patient.path, change)


@damage("field-gpt2-short", patient="transformers-gpt2", mode="FM46", probe=MISSING)
def count_more_layers(patient: Patient) -> None:
    """Count a layer more than there is, in the words of a family of its own."""
    count = json.loads((patient.path / "config.json").read_text())["n_layer"]
    edit_json(patient.path / "config.json", n_layer=count + 1)


@damage(
    "field-merged-with-an-eighth",
    patient="peft-merged-all-linear",
    mode="FM26",
    probe="merge-wrongly-scaled",
)
def edit_alpha_afterwards(patient: Patient) -> Patient:
    """Raise lora_alpha eightfold after the merge, so that it holds an eighth of the change."""
    adapter = patient.path.parent / "edited"
    shutil.copytree(patient.options["adapter"], adapter)
    alpha = json.loads((adapter / "adapter_config.json").read_text())["lora_alpha"]
    edit_json(adapter / "adapter_config.json", lora_alpha=8 * alpha)
    return patient.asking(adapter=adapter)
