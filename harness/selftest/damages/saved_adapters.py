"""Damages of adapters as they are saved: untrained, dead, stacked, half, beside a merge."""

from __future__ import annotations

import shutil
from functools import partial
from typing import Any

from harness.selftest.edit import Tensors, drop_tensors, edit_json, edit_tensors, rename_tensors
from harness.selftest.registry import Patient, damage

ROOT = "base_model.model."
SETTINGS = "adapter_config.json"
Q1 = "layers.1.self_attn.q_proj"
RECOMPUTED = "_checkpoint_wrapped_module."


def rename(patient: Patient, old: str, new: str) -> None:
    """Replace a part of every key."""
    rename_tensors(patient.path, old, new)


def drop(patient: Patient, part: str) -> None:
    """Leave out keys."""
    drop_tensors(patient.path, part)


def scale(patient: Patient, part: str, factor: float) -> None:
    """Multiply the tensors whose key holds `part`."""
    edit_tensors(
        patient.path,
        lambda tensors: {k: v * factor if part in k else v for k, v in tensors.items()},
    )


def set_config(patient: Patient, **changes: Any) -> None:
    """Change the settings of an adapter."""
    edit_json(patient.path / SETTINGS, **changes)


# --- never trained (FM08) ------------------------------------------------------------------------

for _patient in (
    "peft-lora-dora",
    "peft-lora-qwen2",
    "peft-lora-bf16",
    "peft-lora-mixtral",
    "peft-lora-seq-cls",
    "peft-lora-qwen2-vl",
):
    damage(f"untrained-{_patient}", patient=_patient, mode="FM08", probe="adapter-never-trained")(
        partial(scale, part="lora_B", factor=0.0)
    )
damage("one-module-untrained", patient="peft-lora", mode="FM08", probe="adapter-never-trained")(
    partial(scale, part=f"{Q1}.lora_B", factor=0.0)
)


@damage("fresh-adapter", patient="peft-lora", mode="FM08", probe="adapter-never-trained")
def save_fresh(patient: Patient) -> None:
    """Save an adapter as `get_peft_model` makes it, without a training step."""
    from peft import LoraConfig, get_peft_model

    from harness.selftest.make import load_model

    settings = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear")
    shutil.rmtree(patient.path)
    model = load_model(patient.options["base"])
    get_peft_model(model, settings).save_pretrained(patient.path)


# --- dead keys (FM06, FM07, FM53) ----------------------------------------------------------------

for _name, _patient, _old, _new, _mode in (
    ("renamed-modules", "peft-lora", "model.layers", "language_model.layers", "FM07"),
    ("text-of-a-seeing-model", "peft-lora", "model.layers", "model.language_model.layers", "FM07"),
    (
        "older-seeing-names",
        "peft-lora",
        "model.model.layers",
        "model.language_model.model.layers",
        "FM07",
    ),
    ("without-its-model", "peft-lora-all-linear", "model.model.layers", "model.layers", "FM06"),
    ("no-prefix", "peft-lora", ROOT, "", "FM06"),
    ("name-in-keys", "peft-lora", ".weight", ".default.weight", "FM06"),
    ("name-in-keys-dora", "peft-lora-qwen2", ".weight", ".policy.weight", "FM06"),
    ("renamed-blocks", "peft-lora", ".layers.", ".blocks.", "FM53"),
    ("renamed-attention", "peft-lora", "self_attn", "attn", "FM06"),
):
    damage(_name, patient=_patient, mode=_mode, probe="adapter-keys-dead")(
        partial(rename, old=_old, new=_new)
    )


# --- stacked (FM17) ------------------------------------------------------------------------------

damage("stacked", patient="peft-lora", mode="FM17", probe="adapter-stacked")(
    partial(rename, old=ROOT, new=ROOT + ROOT)
)
damage("stacked-dora", patient="peft-lora-dora", mode="FM17", probe="adapter-stacked")(
    partial(rename, old=ROOT, new=ROOT + ROOT)
)
damage("nested", patient="peft-lora", mode="FM17", probe="adapter-stacked")(
    partial(rename, old="q_proj.lora", new="q_proj.base_layer.lora")
)
damage("config-of-the-second-stage", patient="peft-lora", mode="FM17", probe="adapter-stacked")(
    partial(set_config, target_modules=["q_proj"])
)


@damage("second-wrap", patient="peft-lora", mode="FM17", probe="adapter-stacked")
def wrap_twice(patient: Patient) -> None:
    """Call `get_peft_model` on a model that has an adapter already, train both, and save."""
    from peft import LoraConfig, PeftModel, get_peft_model

    from harness.selftest.make import load_model, train_a_little

    model = load_model(patient.options["base"])
    first = PeftModel.from_pretrained(model, patient.path, is_trainable=True)
    second = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["k_proj", "o_proj"])
    wrapped = get_peft_model(first, second)
    train_a_little(wrapped)
    shutil.rmtree(patient.path)
    wrapped.save_pretrained(patient.path)


@damage("two-names", patient="peft-lora", mode="FM18", probe="adapter-stacked")
def keep_two_names(patient: Patient) -> None:
    """Save the adapters of two names into one file."""

    def change(tensors: Tensors) -> Tensors:
        return {
            key.replace(".weight", f".{'second' if '.1.' in key else 'default'}.weight"): value
            for key, value in tensors.items()
        }

    edit_tensors(patient.path, change)


# --- half of it (FM24, FM25, FM26, FM34) ---------------------------------------------------------


def empty_tensors(patient: Patient, part: str) -> None:
    """Save parameters that ZeRO-3 had not gathered: they have no element."""
    edit_tensors(
        patient.path,
        lambda tensors: {k: v.flatten()[:0] if part in k else v for k, v in tensors.items()},
    )


damage(
    "ungathered",
    patient="peft-lora",
    mode="FM24",
    probe="tensors-empty",
    also=("adapter-config-disagrees",),
)(partial(empty_tensors, part=""))
damage(
    "ungathered-module",
    patient="peft-lora-modules-to-save",
    mode="FM25",
    probe="tensors-empty",
)(partial(empty_tensors, part="lm_head"))
damage(
    "ungathered-embedding",
    patient="peft-lora-embedding-to-save",
    mode="FM25",
    probe="tensors-empty",
)(partial(empty_tensors, part="embed_tokens"))
damage("half-a-pair", patient="peft-lora", mode="", probe="adapter-config-disagrees")(
    partial(drop, part=f"{Q1}.lora_B")
)
damage("rank-edited", patient="peft-lora", mode="FM26", probe="adapter-config-disagrees")(
    partial(set_config, r=16)
)
damage("alpha-zero", patient="peft-lora", mode="FM26", probe="adapter-config-disagrees")(
    partial(set_config, lora_alpha=0)
)
damage(
    "rank-pattern-emptied",
    patient="peft-lora-rank-pattern",
    mode="FM26",
    probe="adapter-config-disagrees",
)(partial(set_config, rank_pattern={}))
damage("layer-hole", patient="peft-lora", mode="FM34", probe="adapter-layers-missing")(
    partial(drop, part=f"{Q1}.")
)
damage("last-layer-hole", patient="peft-lora", mode="FM34", probe="adapter-layers-missing")(
    partial(drop, part="layers.2.")
)
damage("block-hole", patient="peft-lora-all-linear", mode="FM34", probe="adapter-layers-missing")(
    partial(drop, part="layers.1.mlp")
)


# --- wrappers (FM22, FM23) and left-overs (FM19) -------------------------------------------------

for _name, _patient, _old, _new, _mode in (
    ("compiled-outside", "peft-lora", ROOT, f"_orig_mod.{ROOT}", "FM22"),
    ("compiled-dora", "peft-lora-dora", ROOT, f"{ROOT}_orig_mod.", "FM22"),
    ("compiled-layers", "peft-lora", "layers.1.", "layers.1._orig_mod.", "FM22"),
    ("adapter-ddp", "peft-lora", ROOT, f"module.{ROOT}", "FM23"),
    ("adapter-fsdp", "peft-lora", "layers.1.", "layers.1._fsdp_wrapped_module.", "FM23"),
    (
        "adapter-recomputed",
        "peft-lora",
        "layers.0.",
        "layers.0._checkpoint_wrapped_module.",
        "FM23",
    ),
):
    damage(_name, patient=_patient, mode=_mode, probe="wrapper-prefix-left")(
        partial(rename, old=_old, new=_new)
    )


@damage("beside-merged", patient="peft-merged", mode="FM19", probe="adapter-beside-merged-weights")
def leave_settings(patient: Patient) -> None:
    """Leave the adapter's settings beside the merged weights."""
    shutil.copy(patient.options["adapter"] / SETTINGS, patient.path)


@damage(
    "merged-into-adapter", patient="peft-merged", mode="FM19", probe="adapter-beside-merged-weights"
)
def leave_adapter(patient: Patient) -> None:
    """Save the merged model into the folder of its adapter."""
    for name in (SETTINGS, "adapter_model.safetensors"):
        shutil.copy(patient.options["adapter"] / name, patient.path)


# --- on another model than it was trained on (FM06, FM53) ----------------------------------------


def ask_with(patient: Patient, base: str) -> Patient:
    """Ask with a model of another family as the base."""
    from harness.selftest.healthy.transformers_families import FAMILIES
    from harness.selftest.make import make_config, save_random

    other = patient.path.parent / "other"
    kind, settings = FAMILIES[base]
    save_random(other, make_config(kind, **settings))
    return patient.asking(base=other)


for _patient in ("peft-lora", "peft-oft", "peft-lora-feature-extraction"):
    damage(f"on-gpt2-{_patient}", patient=_patient, mode="FM06", probe="adapter-keys-dead")(
        partial(ask_with, base="gpt2")
    )
damage(
    "replication-forgotten", patient="peft-lora-replicated", mode="FM53", probe="adapter-keys-dead"
)(partial(set_config, layer_replication=None))


# --- what servers leave out (FM26, FM28): sound in itself, and worth a note ----------------------


def adapt_also(patient: Patient, **settings: Any) -> None:
    """Train another adapter in the place of this one."""
    from harness.selftest.healthy.peft_lora import make_lora
    from harness.selftest.make import save_tuned

    shutil.rmtree(patient.path)
    save_tuned(patient.path, patient.options["base"], make_lora(**settings))


for _name, _mode, _probe, _settings in (
    ("head-adapted", "FM28", "adapter-needs-merging", {"target_modules": ["q_proj", "lm_head"]}),
    (
        "embedding-adapted",
        "FM28",
        "adapter-needs-merging",
        {"target_modules": ["q_proj", "embed_tokens"]},
    ),
    (
        "head-saved-whole",
        "FM28",
        "adapter-needs-merging",
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ),
    (
        "rank-stabilised",
        "FM26",
        "adapter-scale-unportable",
        {"target_modules": ["q_proj"], "use_rslora": True},
    ),
    (
        "alphas-by-module",
        "FM26",
        "adapter-scale-unportable",
        {"target_modules": ["q_proj", "v_proj"], "alpha_pattern": {"q_proj": 32}},
    ),
):
    damage(_name, patient="peft-lora", mode=_mode, probe=_probe)(partial(adapt_also, **_settings))
