"""Models saved in every way that transformers offers: dtypes, shards, variants, twice, reworded."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from harness.selftest.edit import edit_json, edit_tensors
from harness.selftest.make import (
    SIZES,
    SPECIAL,
    load_model,
    make_config,
    save_random,
    save_tuned,
    train_a_little,
)
from harness.selftest.registry import Patient, Ward, healthy

SHAPE: dict[str, Any] = {**SIZES, **SPECIAL}
TIED: dict[str, Any] = {**SHAPE, "tie_word_embeddings": True}
MOE: dict[str, Any] = {**SHAPE, "num_local_experts": 2}
WAYS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "bf16": ("LlamaConfig", SHAPE, "bf16", {}),
    "fp16": ("LlamaConfig", SHAPE, "fp16", {}),
    "shards": ("LlamaConfig", SHAPE, "fp32", {"max_shard_size": "20kB"}),
    "shards-bf16": ("LlamaConfig", SHAPE, "bf16", {"max_shard_size": "20kB"}),
    "shards-tied": ("LlamaConfig", TIED, "fp32", {"max_shard_size": "20kB"}),
    "shards-mixtral": ("MixtralConfig", MOE, "fp32", {"max_shard_size": "20kB"}),
    "variant": ("LlamaConfig", SHAPE, "fp16", {"variant": "fp16"}),
    "variant-shards": (
        "LlamaConfig",
        SHAPE,
        "bf16",
        {"variant": "bf16", "max_shard_size": "20kB"},
    ),
    "fused-experts": ("MixtralConfig", MOE, "fp32", {"save_original_format": False}),
}
"""Settings, dtype and arguments of `save_pretrained`."""


def save_in_a_way(
    ward: Ward, *, kind: str, settings: dict[str, Any], dtype: str, how: dict[str, Any]
) -> Patient:
    """Save a random model with arguments of `save_pretrained`."""
    save_random(ward.folder, make_config(kind, **settings), dtype=dtype, **how)
    return Patient(path=ward.folder)


for _name, (_kind, _settings, _dtype, _how) in WAYS.items():
    healthy(f"transformers-{_name}")(
        partial(save_in_a_way, kind=_kind, settings=_settings, dtype=_dtype, how=_how)
    )


def save_in_two_formats(ward: Ward, *, tied: bool) -> Patient:
    """Save in safetensors, and beside it as torch pickles, as many hubs have it."""
    import torch

    model = save_random(ward.folder, make_config("LlamaConfig", **(TIED if tied else SHAPE)))
    torch.save(model.state_dict(), ward.folder / "pytorch_model.bin")
    return Patient(path=ward.folder)


for _words, _tied in (("two-formats", False), ("two-formats-tied", True)):
    healthy(f"transformers-{_words}", notes=("shards-stale", "weights-pickled"))(
        partial(save_in_two_formats, tied=_tied)
    )


@healthy("transformers-saved-twice")
def save_twice(ward: Ward) -> Patient:
    """Save in shards, and then in one file over them, as transformers allows."""
    model = save_random(ward.folder / "m", make_config("LlamaConfig", **SHAPE))
    model.save_pretrained(ward.folder / "m")
    return Patient(path=ward.folder / "m")


@healthy("transformers-loaded-and-saved")
def load_and_save(ward: Ward) -> Patient:
    """Load a saved model in another dtype, and save it again beside what it was."""
    base = ward.get("transformers-llama").path
    load_model(base, dtype="bf16").save_pretrained(ward.folder)
    return Patient(path=ward.folder)


@healthy("transformers-full-fine-tune")
def tune_all(ward: Ward) -> Patient:
    """Move every weight a little, as full fine-tuning does; its base is known."""
    base = ward.get("transformers-llama").path
    model = load_model(base)
    train_a_little(model, scale=1e-3, seed=3)
    model.save_pretrained(ward.folder)
    return Patient(path=ward.folder, options={"base": base})


@healthy("transformers-half-frozen")
def tune_some(ward: Ward) -> Patient:
    """Fine-tune the last layer and the head only, in bf16; its base is known."""
    base = ward.get("transformers-bf16").path
    model = load_model(base, dtype="bf16")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.2." in name or "lm_head" in name)
    train_a_little(model, scale=5e-3, seed=3)
    model.save_pretrained(ward.folder)
    return Patient(path=ward.folder, options={"base": base})


@healthy("transformers-several-stops")
def save_stops(ward: Ward) -> Patient:
    """Save a model that ends at any of two tokens, as the Llama 3 chat models do."""
    config = make_config("LlamaConfig", **{**SHAPE, "eos_token_id": [1, 5]})
    model = save_random(ward.folder, config)
    model.generation_config.eos_token_id = [1, 5]
    model.generation_config.do_sample = True
    model.generation_config.temperature = 0.6
    model.save_pretrained(ward.folder)
    return Patient(path=ward.folder)


@healthy("transformers-zero-layer-norm-bias")
def save_fresh_norms(ward: Ward) -> Patient:
    """Save a GPT-NeoX as it is initialised: every bias zero, every norm one."""
    save_random(ward.folder, make_config("GPTNeoXConfig", **SHAPE, initializer_range=0.02))
    return Patient(path=ward.folder)


@healthy("transformers-distributed")
def save_with_accelerate(ward: Ward) -> Patient:
    """Save through accelerate, which writes shards with its own hand."""
    from accelerate import Accelerator

    model = save_random(ward.folder, make_config("LlamaConfig", **SHAPE))
    accelerator = Accelerator(cpu=True)
    (ward.folder / "model.safetensors").unlink()
    accelerator.save_model(model, ward.folder, max_shard_size="40KB")
    return Patient(path=ward.folder)


@healthy("transformers-add-adapter")
def add_adapter(ward: Ward) -> Patient:
    """Save an adapter that transformers itself put on the model."""
    from peft import LoraConfig

    base = ward.get("transformers-llama").path
    model = load_model(base)
    model.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    train_a_little(model)
    model.save_pretrained(ward.folder)
    return Patient(path=ward.folder, options={"base": base})


@healthy("transformers-old-rope-keys")
def write_old_rope(ward: Ward) -> Patient:
    """Write the settings as transformers 4 did: rope_theta, torch_dtype, no rope_parameters."""
    save_random(ward.folder, make_config("LlamaConfig", **SHAPE))
    edit_json(
        ward.folder / "config.json",
        rope_parameters=None,
        rope_theta=10000.0,
        rope_scaling=None,
        dtype=None,
        torch_dtype="float32",
        transformers_version="4.44.2",
    )
    return Patient(path=ward.folder)


@healthy("transformers-strange-eos")
def keep_default_eos(ward: Ward) -> Patient:
    """Keep the id of the end that the class has by default: no tokenizer says it is wrong."""
    save_random(ward.folder, make_config("LlamaConfig", **SHAPE))
    edit_json(ward.folder / "config.json", eos_token_id=50_000)
    return Patient(path=ward.folder)


@healthy("transformers-pickled-trainer-state")
def keep_training_files(ward: Ward) -> Patient:
    """Save a checkpoint of an adapter with its optimizer, its random states and its arguments."""
    import torch

    base = ward.get("transformers-llama").path
    for step in (2, 10):
        _save_step(ward.folder / f"checkpoint-{step}", base, step)
    torch.save([1, 2], ward.folder / "rng.pth")
    return Patient(path=ward.folder, options={"base": base})


def _save_step(folder: Path, base: Path, step: int) -> None:
    import json

    import torch
    from peft import LoraConfig

    settings = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])
    save_tuned(folder, base, settings, scale=0.01 * step)
    torch.save({"state": {0: {"exp_avg": torch.zeros(3)}}}, folder / "optimizer.pt")
    torch.save([1, 2], folder / "rng_state.pth")
    torch.save({"last_epoch": step}, folder / "scheduler.pt")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))


@healthy("transformers-nameless-metadata")
def save_without_metadata(ward: Ward) -> Patient:
    """Save with the plain function of safetensors, which notes no format."""
    from safetensors.torch import load_file, save_file

    save_random(ward.folder, make_config("LlamaConfig", **SHAPE))
    path = ward.folder / "model.safetensors"
    save_file(load_file(path), path)
    return Patient(path=ward.folder)


@healthy("transformers-mixed-dtypes")
def save_mixed(ward: Ward) -> Patient:
    """Keep the norms in fp32 in a model of bf16, as many trainers do."""
    import torch

    save_random(ward.folder, make_config("LlamaConfig", **SHAPE), dtype="bf16")
    edit_tensors(
        ward.folder,
        lambda tensors: {
            key: value.to(torch.float32) if "norm" in key else value
            for key, value in tensors.items()
        },
    )
    return Patient(path=ward.folder)
