"""Damages of adapters' keys: names of another class, version or wrapper; adapters stacked."""

from __future__ import annotations

from harness.selftest.edit import Tensors, edit_json, edit_tensors, rename_tensors
from harness.selftest.registry import Patient, damage

DEAD = "adapter-keys-dead"
PREFIX = "base_model.model."


@damage("keys-of-the-bare-model", patient="peft-lora", mode="FM06", probe=DEAD)
def train_on_bare_model(patient: Patient) -> None:
    """Name the modules as AutoModel has them."""
    rename_tensors(patient.path, f"{PREFIX}model.", PREFIX)


@damage("keys-of-the-bare-model-no-base", patient="peft-lora", mode="FM06", probe=DEAD)
def train_on_bare_model_alone(patient: Patient) -> Patient:
    """Name the modules as AutoModel has them, where no base is at hand."""
    rename_tensors(patient.path, f"{PREFIX}model.", PREFIX)
    edit_json(patient.path / "adapter_config.json", base_model_name_or_path="owner/gone")
    return Patient(path=patient.path)


@damage("keys-with-value-head", patient="peft-lora", mode="FM06", probe=DEAD)
def train_with_value_head(patient: Patient) -> None:
    """Save from TRL's wrapper with a value head."""
    rename_tensors(patient.path, PREFIX, f"{PREFIX}pretrained_model.")


@damage("keys-with-thinker", patient="peft-lora", mode="FM23", probe=DEAD)
def train_as_thinker(patient: Patient) -> None:
    """Name the modules as a model that also speaks has them."""
    rename_tensors(patient.path, PREFIX, f"{PREFIX}thinker.")


@damage("keys-half-dead", patient="peft-lora", mode="FM06", probe=DEAD)
def kill_half(patient: Patient) -> None:
    """Give the value projections the name of another family."""
    rename_tensors(patient.path, "self_attn.v_proj", "attention.wv")
    edit_json(patient.path / "adapter_config.json", target_modules=["q_proj", "wv"])


@damage("text-keys-with-images", patient="peft-lora", mode="FM07", probe=DEAD)
def name_as_seeing(patient: Patient) -> None:
    """Name the modules of a text model as a model that sees has them."""
    rename_tensors(patient.path, f"{PREFIX}model.", f"{PREFIX}model.language_model.")


@damage("text-keys-with-older-images", patient="peft-lora", mode="FM07", probe=DEAD)
def name_as_seeing_before(patient: Patient) -> None:
    """Name the modules of a text model as an older version of a model that sees had them."""
    rename_tensors(patient.path, f"{PREFIX}model.", f"{PREFIX}language_model.model.")


@damage("seeing-keys-of-text", patient="peft-lora-seeing", mode="FM07", probe=DEAD)
def name_as_text(patient: Patient) -> None:
    """Name the language part of LLaVA as a text model."""
    rename_tensors(patient.path, "model.language_model.", "model.")


@damage("seeing-keys-before-4.52", patient="peft-lora-qwen2-vl", mode="FM07", probe=DEAD)
def name_as_before(patient: Patient) -> None:
    """Name the language part of Qwen2-VL as transformers did before 4.52."""
    rename_tensors(patient.path, "model.language_model.", "model.")


@damage("two-names-in-keys", patient="peft-lora", mode="FM17", probe="adapter-stacked")
def save_two_names(patient: Patient) -> None:
    """Save the state of a model that has two adapters."""

    def double(tensors: Tensors) -> Tensors:
        made = {}
        for key, value in tensors.items():
            for name in ("default", "default_0"):
                made[key.replace(".weight", f".{name}.weight")] = value * 1.5
        return made

    edit_tensors(patient.path, double)


@damage("wrapped-twice", patient="peft-lora", mode="FM17", probe="adapter-stacked")
def wrap_twice(patient: Patient) -> None:
    """Save a PEFT model of a PEFT model."""
    rename_tensors(patient.path, PREFIX, PREFIX * 2)


@damage("adapter-in-adapter", patient="peft-lora", mode="FM17", probe="adapter-stacked")
def put_inside(patient: Patient) -> None:
    """Save factors of the layer inside an adapter layer."""
    rename_tensors(patient.path, "q_proj.lora_", "q_proj.base_layer.lora_")


@damage("inner-adapter-kept", patient="peft-lora", mode="FM17", probe="adapter-stacked")
def keep_inner(patient: Patient) -> None:
    """Save the factors of both stages, one inside the other."""

    def add(tensors: Tensors) -> Tensors:
        inner = {
            k.replace("q_proj.lora_", "q_proj.base_layer.lora_"): v * 0.5
            for k, v in tensors.items()
            if "q_proj" in k
        }
        return {**tensors, **inner}

    edit_tensors(patient.path, add)


@damage("second-stage-config", patient="peft-lora", mode="FM17", probe="adapter-stacked")
def keep_last_config(patient: Patient) -> None:
    """Save the tensors of both stages and the settings of the last."""
    edit_json(patient.path / "adapter_config.json", target_modules=["v_proj"])


@damage("ia3-wrapped-twice", patient="peft-ia3", mode="FM17", probe="adapter-stacked")
def wrap_ia3_twice(patient: Patient) -> None:
    """Save a PEFT model of a PEFT model, with vectors in place of factors."""
    rename_tensors(patient.path, PREFIX, PREFIX * 2)


@damage("numbered-factors", patient="peft-lora", mode="FM18", probe="adapter-stacked")
def number_factors(patient: Patient) -> None:
    """Save the factors of a second adapter under numbered names."""

    def add(tensors: Tensors) -> Tensors:
        more = {
            k.replace("lora_A.", "lora_A_1.").replace("lora_B.", "lora_B_1."): v * 0.5
            for k, v in tensors.items()
        }
        return {**tensors, **more}

    edit_tensors(patient.path, add)
