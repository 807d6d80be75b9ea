"""LoRA of every kind that PEFT saves: ranks, scales, layers, heads, tokens, tasks, names."""

from __future__ import annotations

from functools import partial
from typing import Any

from harness.selftest.edit import edit_json
from harness.selftest.make import load_model, save_tuned, train_a_little
from harness.selftest.registry import Patient, Ward, healthy

KINDS: dict[str, dict[str, Any]] = {
    "all-linear": {"target_modules": "all-linear"},
    "rslora": {"target_modules": ["q_proj", "up_proj"], "use_rslora": True, "r": 8},
    "rank-pattern": {
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"q_proj": 2, "layers.1.self_attn.v_proj": 6},
    },
    "alpha-pattern": {
        "target_modules": ["q_proj", "v_proj"],
        "alpha_pattern": {r"^model\.layers\.0.*q_proj": 32},
    },
    "modules-to-save": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "embedding-to-save": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["embed_tokens", "lm_head"],
    },
    "norms-to-save": {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm"]},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "dora": {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
    "dora-rslora": {"target_modules": ["v_proj"], "use_dora": True, "use_rslora": True},
    "bias-all": {"target_modules": ["q_proj"], "bias": "all"},
    "bias-lora": {"target_modules": ["q_proj"], "bias": "lora_only"},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [90, 91]},
    "some-layers": {"target_modules": ["q_proj"], "layers_to_transform": [0, 2]},
    "one-layer": {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": 2},
    "excluded": {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
    "pattern": {"target_modules": r".*\.layers\.[01]\..*(q|k)_proj"},
    "replicated": {"target_modules": ["q_proj"], "layer_replication": [[0, 2], [1, 3]]},
    "pissa": {"target_modules": ["q_proj"], "init_lora_weights": "pissa"},
    "olora": {"target_modules": ["q_proj"], "init_lora_weights": "olora"},
    "gaussian": {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
    "rank-one": {"target_modules": ["q_proj", "v_proj"], "r": 1, "lora_alpha": 1},
    "high-rank": {"target_modules": ["q_proj", "v_proj"], "r": 64, "lora_alpha": 128},
    "parameters": {"target_modules": ["q_proj"], "lora_dropout": 0.1, "fan_in_fan_out": False},
}
"""What is given to `LoraConfig` besides rank 4 and alpha 8."""
SCALE, MERGE = "adapter-scale-unportable", "adapter-needs-merging"
NOTES = {
    **dict.fromkeys(("rslora", "rank-pattern", "alpha-pattern", "replicated"), SCALE),
    **dict.fromkeys(("dora", "dora-rslora", "mixtral", "qwen3-moe"), SCALE),
    **dict.fromkeys(("modules-to-save", "embedding-to-save", "embeddings"), MERGE),
    **dict.fromkeys(("head", "tokens"), MERGE),
    **dict.fromkeys(("pissa", "olora"), "adapter-start-not-repeatable"),
}
"""The note that is right about a kind or a family."""
FAMILIES: dict[str, Any] = {
    "llama-tied": "all-linear",
    "qwen2": "all-linear",
    "qwen3": "all-linear",
    "gemma2": "all-linear",
    "gemma3": "all-linear",
    "mistral": "all-linear",
    "mixtral": "all-linear",
    "qwen3-moe": "all-linear",
    "gpt2": "all-linear",
    "gpt-neox": "all-linear",
    "falcon": "all-linear",
    "opt": "all-linear",
    "bloom": "all-linear",
    "phi3": "all-linear",
    "mamba": ["in_proj", "x_proj"],
}
"""Targets, by the family of the base."""
TASKS = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "FEATURE_EXTRACTION": "AutoModel",
}


def make_lora(**settings: Any) -> Any:
    """Return settings of a small LoRA for language models."""
    from peft import LoraConfig

    return LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, **settings})


def save_kind(ward: Ward, *, base: str, settings: dict[str, Any]) -> Patient:
    """Save an adapter of a base of the ward."""
    source = ward.get(base).path
    save_tuned(ward.folder, source, make_lora(**settings))
    return Patient(path=ward.folder, options={"base": source})


def save_task(ward: Ward, *, task: str) -> Patient:
    """Save an adapter for another head than the one of language models."""
    source = ward.get("transformers-llama").path
    settings = make_lora(task_type=task, target_modules=["q_proj"])
    save_tuned(ward.folder, source, settings, auto=TASKS[task])
    return Patient(path=ward.folder)


def notes_of(name: str) -> tuple[str, ...]:
    """Return the notes that are right about a kind or a family."""
    return (NOTES[name],) if name in NOTES else ()


for _name, _settings in KINDS.items():
    healthy(f"peft-lora-{_name}", notes=notes_of(_name))(
        partial(save_kind, base="transformers-llama", settings=_settings)
    )
for _name, _targets in FAMILIES.items():
    healthy(f"peft-lora-{_name}", notes=notes_of(_name))(
        partial(save_kind, base=f"transformers-{_name}", settings={"target_modules": _targets})
    )
for _task in TASKS:
    healthy(f"peft-lora-{_task.lower().replace('_', '-')}")(partial(save_task, task=_task))


@healthy("peft-lora-without-base", notes=("base-named-loosely",))
def forget_base(ward: Ward) -> Patient:
    """Save an adapter whose base is named as on a hub and is not at hand."""
    base = ward.get("transformers-llama").path
    save_tuned(ward.folder, base, make_lora(target_modules=["q_proj", "v_proj"]))
    name = "someone/some-model"
    edit_json(ward.folder / "adapter_config.json", base_model_name_or_path=name)
    return Patient(path=ward.folder)


@healthy("peft-lora-bf16")
def save_in_bf16(ward: Ward) -> Patient:
    """Save an adapter that was trained in bf16, of a base in bf16."""
    base = ward.get("transformers-bf16").path
    save_tuned(ward.folder, base, make_lora(target_modules="all-linear"), dtype="bf16")
    return Patient(path=ward.folder, options={"base": base})


@healthy("peft-lora-bias-of-lora", notes=(SCALE,))
def save_lora_bias(ward: Ward) -> Patient:
    """Save an adapter with `lora_bias`, which wants a base with biases."""
    base = ward.get("transformers-qwen2").path
    save_tuned(ward.folder, base, make_lora(target_modules=["q_proj"], lora_bias=True))
    return Patient(path=ward.folder, options={"base": base})


@healthy("peft-lora-tied-head", notes=(MERGE,))
def save_tied_head(ward: Ward) -> Patient:
    """Save the head of a tied base, which PEFT unties by a copy."""
    base = ward.get("transformers-llama-tied").path
    settings = make_lora(target_modules=["q_proj"], modules_to_save=["lm_head"])
    save_tuned(ward.folder, base, settings)
    return Patient(path=ward.folder, options={"base": base})


@healthy("peft-lora-kept-tied", notes=(MERGE,))
def save_kept_tied(ward: Ward) -> Patient:
    """Save the embedding of a tied base that PEFT keeps tied."""
    base = ward.get("transformers-llama-tied").path
    settings = make_lora(
        target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True
    )
    save_tuned(ward.folder, base, settings)
    return Patient(path=ward.folder, options={"base": base})


@healthy("peft-lora-with-embeddings", notes=(MERGE,))
def save_embeddings(ward: Ward) -> Patient:
    """Save the embeddings along, as PEFT does when the vocabulary was resized."""
    base = ward.get("transformers-llama").path
    settings = make_lora(target_modules=["q_proj"])
    save_tuned(ward.folder, base, settings, save_embedding_layers=True)
    return Patient(path=ward.folder, options={"base": base})


@healthy("peft-lora-resized", notes=(MERGE,))
def save_resized(ward: Ward) -> Patient:
    """Save an adapter of a model that was resized after loading; its embeddings come along."""
    from peft import get_peft_model

    base = ward.get("transformers-llama").path
    model = load_model(base)
    model.resize_token_embeddings(100)
    wrapped = get_peft_model(model, make_lora(target_modules=["q_proj"]))
    train_a_little(wrapped)
    wrapped.save_pretrained(ward.folder)
    return Patient(path=ward.folder, options={"base": base})


@healthy("peft-lora-two-names")
def save_two_adapters(ward: Ward) -> Patient:
    """Save two adapters of one model: the default one at the top, the other in its folder."""
    from peft import get_peft_model

    base = ward.get("transformers-llama").path
    wrapped = get_peft_model(load_model(base), make_lora(target_modules=["q_proj", "v_proj"]))
    wrapped.add_adapter("second", make_lora(target_modules=["k_proj"], r=2))
    wrapped.base_model.set_adapter(["default", "second"])
    train_a_little(wrapped)
    wrapped.save_pretrained(ward.folder)
    return Patient(path=ward.folder, options={"base": base})


@healthy("peft-lora-named")
def save_named(ward: Ward) -> Patient:
    """Save an adapter that has a name, in the folder that PEFT makes for it."""
    from peft import get_peft_model

    base = ward.get("transformers-llama").path
    settings = make_lora(target_modules=["q_proj", "v_proj"])
    wrapped = get_peft_model(load_model(base), settings, adapter_name="policy")
    train_a_little(wrapped)
    wrapped.save_pretrained(ward.folder)
    return Patient(path=ward.folder / "policy", options={"base": base})


@healthy("peft-lora-continued")
def continue_adapter(ward: Ward) -> Patient:
    """Load an adapter for training, train on, and save it."""
    from peft import PeftModel

    base, first = ward.get("transformers-llama").path, ward.get("peft-lora").path
    wrapped = PeftModel.from_pretrained(load_model(base), first, is_trainable=True)
    train_a_little(wrapped, seed=5)
    wrapped.save_pretrained(ward.folder)
    return Patient(path=ward.folder, options={"base": base})


@healthy("peft-lora-weighted")
def combine_adapters(ward: Ward) -> Patient:
    """Save the weighted sum of two adapters, which has another rank than either."""
    from peft import PeftModel

    base, first = ward.get("transformers-llama").path, ward.get("peft-lora").path
    wrapped = PeftModel.from_pretrained(load_model(base), first, adapter_name="a")
    wrapped.load_adapter(ward.get("peft-lora-continued").path, adapter_name="b")
    wrapped.add_weighted_adapter(["a", "b"], [0.5, 0.5], "both", combination_type="cat")
    wrapped.save_pretrained(ward.folder, selected_adapters=["both"])
    return Patient(path=ward.folder / "both", options={"base": base})


@healthy("peft-lora-seeing", notes=(SCALE,))
def adapt_seeing_model(ward: Ward) -> Patient:
    """Save an adapter of the language part of a model of images."""
    base = ward.get("transformers-llava").path
    settings = make_lora(target_modules=["q_proj", "v_proj"], use_dora=True, use_rslora=True)
    save_tuned(ward.folder, base, settings, auto="AutoModelForImageTextToText")
    return Patient(path=ward.folder, options={"base": base})


@healthy("peft-lora-qwen2-vl")
def adapt_qwen2_vl(ward: Ward) -> Patient:
    """Save an adapter of all linear layers of a Qwen2-VL, its eyes included."""
    base = ward.get("transformers-qwen2-vl").path
    settings = make_lora(target_modules="all-linear")
    save_tuned(ward.folder, base, settings, auto="AutoModelForImageTextToText")
    return Patient(path=ward.folder, options={"base": base})
