"""Damages of adapters of other methods than LoRA, and of what surrounds the factors."""

from __future__ import annotations

import shutil

from harness.selftest.edit import Tensors, drop_tensors, edit_json, edit_tensors
from harness.selftest.registry import Patient, damage


@damage("ia3-untrained", patient="peft-ia3", mode="FM08", probe="adapter-never-trained")
def untrain_ia3(patient: Patient) -> None:
    """Leave every vector of IA3 at one."""
    edit_tensors(patient.path, lambda tensors: {k: v * 0 + 1 for k, v in tensors.items()})


@damage("vera-untrained", patient="peft-vera", mode="FM08", probe="adapter-never-trained")
def untrain_vera(patient: Patient) -> None:
    """Leave VeRA's lambda_b at zero."""
    edit_tensors(
        patient.path, lambda tensors: {k: v * ("lambda_b" not in k) for k, v in tensors.items()}
    )


@damage("loha-untrained", patient="peft-loha", mode="FM08", probe="adapter-never-trained")
def untrain_loha(patient: Patient) -> None:
    """Leave the factor of LoHa that starts at zero."""
    edit_tensors(
        patient.path, lambda tensors: {k: v * ("w2_b" not in k) for k, v in tensors.items()}
    )


@damage("adalora-untrained", patient="peft-adalora", mode="FM08", probe="adapter-never-trained")
def untrain_adalora(patient: Patient) -> None:
    """Leave every singular value of AdaLoRA at zero."""
    edit_tensors(
        patient.path, lambda tensors: {k: v * ("lora_E" not in k) for k, v in tensors.items()}
    )


@damage("adapter-weak", patient="peft-lora", mode="FM51", probe="adapter-too-weak")
def weaken(patient: Patient) -> None:
    """Make lora_B as small as a learning rate of 1e-7 leaves it."""
    edit_tensors(
        patient.path, lambda t: {k: v * (1e-4 if "lora_B" in k else 1) for k, v in t.items()}
    )


@damage("adapter-alpha-tiny", patient="peft-lora", mode="FM51", probe="adapter-too-weak")
def shrink_alpha(patient: Patient) -> None:
    """Train with a lora_alpha that switches the adapter almost off."""
    edit_json(patient.path / "adapter_config.json", lora_alpha=0.0005)


@damage(
    "adapter-with-base-equal", patient="peft-lora", mode="FM52", probe="adapter-holds-base-weights"
)
def hold_base(patient: Patient) -> None:
    """Save the whole state dict: factors and the frozen weights, unchanged."""
    edit_tensors(patient.path, lambda tensors: {**tensors, **_base(patient)})


@damage(
    "adapter-with-base-trained",
    patient="peft-lora",
    mode="FM52",
    probe="adapter-holds-base-weights",
)
def hold_trained_base(patient: Patient) -> None:
    """Save the whole state dict of a run whose base was not frozen."""
    edit_tensors(patient.path, lambda t: {**t, **{k: v * 1.01 for k, v in _base(patient).items()}})


def _base(patient: Patient) -> Tensors:
    """Return the weights of the base's layers under the names they have in a PEFT model."""
    from safetensors.torch import load_file

    return {
        f"base_model.model.{key}": value
        for key, value in load_file(patient.options["base"] / "model.safetensors").items()
        if ".layers." in key and "q_proj" not in key and "v_proj" not in key
    }


@damage(
    "classifier-head-gone", patient="peft-classifier", mode="FM63", probe="adapter-head-missing"
)
def drop_score(patient: Patient) -> None:
    """Keep only the factors, as a filter on `lora_` does."""
    drop_tensors(patient.path, "score")


@damage(
    "saved-head-gone",
    patient="peft-lora-modules-to-save",
    mode="FM63",
    probe="adapter-head-missing",
)
def drop_head(patient: Patient) -> None:
    """Lose the head that modules_to_save promises."""
    drop_tensors(patient.path, "lm_head")


@damage("base-is-adapter", patient="peft-lora", mode="FM36", probe="adapter-on-adapter")
def name_adapter_as_base(patient: Patient) -> Patient:
    """Train the second stage on the folder of the first."""
    first = patient.path / "first-stage"
    first.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(patient.path / name, first / name)
    edit_json(patient.path / "adapter_config.json", base_model_name_or_path=str(first))
    return patient


@damage("base-is-twin", patient="peft-lora", mode="FM35", probe="base-named-loosely")
def name_twin(patient: Patient) -> None:
    """Name the 4-bit twin that training was done on."""
    edit_json(
        patient.path / "adapter_config.json", base_model_name_or_path="owner/model-8b-bnb-4bit"
    )


@damage(
    "router-alone",
    patient="peft-attention-of-experts",
    mode="FM50",
    probe="adapter-beside-the-point",
)
def adapt_router_alone(patient: Patient) -> None:
    """Adapt what chooses the experts, and nothing else."""

    def move(tensors: Tensors) -> Tensors:
        found = {k: v for k, v in tensors.items() if "q_proj" in k}
        moved = {k.replace("self_attn.q_proj", "mlp.gate"): v for k, v in found.items()}
        return {k: v[:2] if "lora_B" in k else v for k, v in moved.items()}

    edit_tensors(patient.path, move)
    edit_json(patient.path / "adapter_config.json", target_modules=["gate"])


@damage(
    "start-by-random-pissa",
    patient="peft-lora",
    mode="FM53",
    probe="adapter-start-not-repeatable",
)
def start_by_pissa(patient: Patient) -> None:
    """Keep the start that every load decomposes anew, with random numbers."""
    edit_json(patient.path / "adapter_config.json", init_lora_weights="pissa_niter_4")


SETTINGS = "adapter-config-disagrees"


@damage("alpha-absent", patient="peft-lora", mode="FM26", probe=SETTINGS)
def lose_alpha(patient: Patient) -> None:
    """Lose lora_alpha, so that readers take a default."""
    edit_json(patient.path / "adapter_config.json", lora_alpha=None)


@damage("rank-of-another-run", patient="peft-lora", mode="FM26", probe=SETTINGS)
def exchange_rank(patient: Patient) -> None:
    """Keep the settings of a run of rank 16."""
    edit_json(patient.path / "adapter_config.json", r=16, lora_alpha=32)


@damage("rank-pattern-lost", patient="peft-lora-rank-pattern", mode="FM26", probe=SETTINGS)
def lose_rank_pattern(patient: Patient) -> None:
    """Lose the ranks of single modules."""
    edit_json(patient.path / "adapter_config.json", rank_pattern=None)


@damage("dora-not-declared", patient="peft-lora-dora", mode="FM26", probe=SETTINGS)
def undeclare_dora(patient: Patient) -> None:
    """Lose use_dora, so that the magnitudes have no place."""
    edit_json(patient.path / "adapter_config.json", use_dora=False)


@damage("dora-magnitudes-gone", patient="peft-lora-dora", mode="FM26", probe=SETTINGS)
def drop_magnitudes(patient: Patient) -> None:
    """Save the factors of DoRA alone."""
    drop_tensors(patient.path, "magnitude")


@damage("factors-in-pieces", patient="peft-lora", mode="FM24", probe=SETTINGS)
def save_pieces(patient: Patient) -> None:
    """Save the piece of every factor that one process of a sharded run holds."""
    edit_tensors(patient.path, lambda t: {k: v.flatten()[: v.numel() // 2] for k, v in t.items()})


@damage("factors-of-size-zero", patient="peft-lora", mode="FM24", probe="tensors-empty")
def save_empty(patient: Patient) -> None:
    """Save parameters that were not gathered."""
    edit_tensors(patient.path, lambda t: {k: v.flatten()[:0] for k, v in t.items()})


@damage("saved-head-empty", patient="peft-lora-modules-to-save", mode="FM25", probe="tensors-empty")
def save_empty_head(patient: Patient) -> None:
    """Gather the factors and forget the head."""
    edit_tensors(
        patient.path, lambda t: {k: v.flatten()[:0] if "lm_head" in k else v for k, v in t.items()}
    )


@damage("factors-of-a-layer-gone", patient="peft-lora", mode="FM34", probe="adapter-layers-missing")
def drop_layer(patient: Patient) -> None:
    """Lose the factors of the last layer."""
    drop_tensors(patient.path, "layers.2.")


@damage(
    "factors-of-chosen-layer-gone",
    patient="peft-lora-some-layers",
    mode="FM34",
    probe="adapter-layers-missing",
)
def drop_chosen_layer(patient: Patient) -> None:
    """Lose a layer that layers_to_transform names."""
    drop_tensors(patient.path, "layers.2.")


@damage(
    "adapter-with-whole-state", patient="peft-lora", mode="FM52", probe="adapter-holds-base-weights"
)
def hold_whole_state(patient: Patient) -> None:
    """Save the whole state dict of the PEFT model, with the layers that the adapters wrap."""
    from safetensors.torch import load_file

    def add(tensors: Tensors) -> Tensors:
        base = load_file(patient.options["base"] / "model.safetensors")
        wrapped = {
            k.replace(".weight", ".base_layer.weight") if "q_proj" in k or "v_proj" in k else k: v
            for k, v in base.items()
        }
        return {**tensors, **{f"base_model.model.{k}": v for k, v in wrapped.items()}}

    edit_tensors(patient.path, add)


@damage(
    "adapter-of-further-tokens-alone",
    patient="peft-lora",
    mode="FM50",
    probe="adapter-beside-the-point",
)
def adapt_further_tokens(patient: Patient) -> Patient:
    """Adapt a layer that only predicts further tokens, as DeepSeek's files number it."""

    def move(tensors: Tensors) -> Tensors:
        return {k.replace("layers.1.", "mtp.0."): v for k, v in tensors.items() if ".1." in k}

    edit_tensors(patient.path, move)
    edit_json(
        patient.path / "adapter_config.json",
        target_modules=["mtp.0.self_attn.q_proj", "mtp.0.self_attn.v_proj"],
        base_model_name_or_path="owner/gone",
    )
    return Patient(path=patient.path)
