"""Damages of settings and tokenizers: rope, counts, types, ids, merges, generation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.selftest.edit import edit_json, edit_tensors
from harness.selftest.registry import Patient, damage

CONFIG, GENERATION = "config.json", "generation_config.json"
SETTINGS, TOKENIZER = "tokenizer_config.json", "tokenizer.json"
ROPE, CHANGED, CLASH = "rope-disagrees", "tokenizer-not-the-bases", "added-tokens-clash"
CLASS = "tokenizer-class-changed"
UNUSABLE, COUNTS, OTHER = (
    "generation-settings-unusable",
    "inventory-disagrees",
    "config-not-the-bases",
)


def _change(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def _set(
    name: str,
    patient: str,
    probe: str,
    mode: str,
    file: str,
    also: tuple[str, ...] = (),
    **values: Any,
) -> None:
    """Register a damage that sets keys of one file."""

    @damage(name, patient=patient, mode=mode, probe=probe, also=also)
    def apply(patient: Patient) -> None:
        edit_json(patient.path / file, **values)


_DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
_set("rope-dialects-differ", "chat-thinking", ROPE, "FM30", CONFIG, rope_theta=10000.0)
_set("rope-of-another-base", "chat-tuned", ROPE, "FM30", CONFIG, rope_parameters=_DEFAULT)
_set("rope-lost", "chat-tuned", ROPE, "FM30", CONFIG, rope_parameters=None)
_set("rope-read-by-old", "chat-old-form", ROPE, "FM30", CONFIG, rope_parameters=_DEFAULT)
_set(
    "rope-lost-without-base",
    "chat-thinking",
    ROPE,
    "FM30",
    CONFIG,
    rope_parameters=None,
    max_position_embeddings=131072,
)
_set("rope-theta-zero", "chat-old-form", ROPE, "FM30", CONFIG, rope_theta=0)
_set("rope-theta-text", "chat-old-form", ROPE, "FM30", CONFIG, rope_theta="10000")
_set(
    "rope-factor-below-one",
    "chat-old-form",
    ROPE,
    "FM30",
    CONFIG,
    rope_scaling={"type": "linear", "factor": 0.25},
)
_set(
    "rope-fields-lost",
    "chat-headers",
    ROPE,
    "FM30",
    CONFIG,
    rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0},
)

_set("heat-zero", "chat-chatml", UNUSABLE, "FM03", GENERATION, do_sample=True, temperature=0.0)
_set("no-new-tokens", "chat-chatml", UNUSABLE, "FM03", GENERATION, max_new_tokens=0)
_set("penalty-zero", "chat-chatml", UNUSABLE, "FM03", GENERATION, repetition_penalty=0.0)
_set("share-above-one", "chat-chatml", UNUSABLE, "FM03", GENERATION, top_p=95)
_set("end-suppressed", "chat-chatml", UNUSABLE, "FM03", GENERATION, suppress_tokens=[0, 2])

_set("epsilon-changed", "chat-tuned", OTHER, "FM46", CONFIG, rms_norm_eps=1e-3)
_set("activation-changed", "chat-tuned", OTHER, "FM46", CONFIG, hidden_act="gelu")

_set(
    "end-named-twice",
    "chat-old-form",
    "special-tokens-contradict",
    "FM03",
    "special_tokens_map.json",
    eos_token="<think>",
)

_set("layers-declared-less", "transformers-gpt-neox", COUNTS, "FM46", CONFIG, num_hidden_layers=1)
_set("layers-declared-less-gpt2", "transformers-gpt2", COUNTS, "FM46", CONFIG, n_layer=1)
_set("positions-declared-more", "transformers-gpt2", COUNTS, "FM46", CONFIG, n_positions=4096)
_set(
    "experts-declared-more",
    "transformers-mixtral",
    COUNTS,
    "FM46",
    CONFIG,
    also=("missing-tensors",),
    num_local_experts=8,
)
_set("experts-declared-less", "transformers-qwen2-moe", COUNTS, "FM46", CONFIG, num_experts=2)
_set("width-declared-more", "transformers-olmo2", COUNTS, "FM46", CONFIG, hidden_size=64)


@damage("eyes-left-out", patient="transformers-llava", mode="FM34", probe=COUNTS)
def leave_eyes_out(patient: Patient) -> None:
    """Save the language model alone under the settings of the whole."""
    edit_tensors(
        patient.path, lambda tensors: {k: v for k, v in tensors.items() if "visi" not in k}
    )


@damage("fp16-declared", patient="transformers-gemma2", mode="FM12", probe="dtype-disagrees")
def declare_half(patient: Patient) -> None:
    """Declare float16 over float32 values."""
    edit_json(patient.path / CONFIG, dtype="float16")


@damage(
    "class-of-another-family", patient="chat-tuned", mode="FM31", probe="tokenizer-class-changed"
)
def change_class(patient: Patient) -> None:
    """Save by transformers 5 what the base names by a class that all readers know."""
    edit_json(patient.options["base"] / SETTINGS, tokenizer_class="Qwen2Tokenizer")


@damage("class-newer-than-the-model", patient="chat-old-form", mode="FM31", probe=CLASS)
def name_new_class(patient: Patient) -> None:
    """Save the tokenizer anew beside a model of transformers 4."""
    edit_json(patient.path / SETTINGS, tokenizer_class="TokenizersBackend")
    edit_json(patient.path / CONFIG, transformers_version="4.51.3")


@damage("ids-shifted", patient="chat-tuned", mode="FM49", probe=CHANGED)
def shift_ids(patient: Patient) -> None:
    """Give a hundred tokens the ids of their neighbours."""

    def change(value: dict[str, Any]) -> None:
        vocab = value["model"]["vocab"]
        by_id = sorted(vocab, key=vocab.__getitem__)
        moved = by_id[50:150]
        for text, other in zip(moved, [*moved[1:], moved[0]], strict=True):
            vocab[text] = by_id.index(other)

    _change(patient.path / TOKENIZER, change)


@damage("merges-cut", patient="chat-tuned", mode="FM49", probe=CHANGED)
def cut_merges(patient: Patient) -> None:
    """Lose the last merges."""
    _change(patient.path / TOKENIZER, lambda value: value["model"]["merges"].pop())


@damage("merges-reordered", patient="chat-tuned", mode="FM49", probe=CHANGED)
def reorder_merges(patient: Patient) -> None:
    """Apply the merges in another order."""
    _change(patient.path / TOKENIZER, lambda value: value["model"]["merges"].reverse())


@damage("pre-tokenizer-changed", patient="chat-tuned", mode="FM49", probe=CHANGED)
def cut_elsewhere(patient: Patient) -> None:
    """Cut digits one by one, which the base does not."""

    def change(value: dict[str, Any]) -> None:
        old = value["pre_tokenizer"]
        digits = {"type": "Digits", "individual_digits": True}
        value["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, old]}

    _change(patient.path / TOKENIZER, change)


@damage("token-two-ids", patient="chat-old-form", mode="FM11", probe=CLASH)
def give_two_ids(patient: Patient) -> None:
    """Let the settings give an added token another id."""

    def change(value: dict[str, Any]) -> None:
        decoder = value["added_tokens_decoder"]
        decoder["3"], decoder["4"] = decoder["4"], decoder["3"]

    _change(patient.path / SETTINGS, change)


@damage("id-two-tokens", patient="chat-chatml", mode="FM65", probe=CLASH)
def give_one_id(patient: Patient) -> None:
    """Add a second token with an id that is taken."""

    def change(value: dict[str, Any]) -> None:
        value["added_tokens"].append({**value["added_tokens"][1], "content": "<|tool|>"})

    _change(patient.path / TOKENIZER, change)


@damage("added-file-shifted", patient="chat-chatml", mode="FM11", probe=CLASH)
def shift_added(patient: Patient) -> None:
    """Leave an added_tokens.json of another save."""
    (patient.path / "added_tokens.json").write_text('{"<|im_end|>": 318, "<|im_start|>": 1}')


@damage("unknown-renamed", patient="chat-plain-heads", mode="FM11", probe="unknown-token-missing")
def rename_unknown(patient: Patient) -> None:
    """Name a token for the unknown that the vocabulary does not have."""

    def change(value: dict[str, Any]) -> None:
        value["model"]["unk_token"] = "[UNK]"

    _change(patient.path / TOKENIZER, change)


_set(
    "class-of-another-model",
    "transformers-llama",
    "architecture-disagrees",
    "FM46",
    CONFIG,
    architectures=["MistralForCausalLM"],
)
_set(
    "end-not-named",
    "chat-chatml",
    "stop-tokens-disagree",
    "FM03",
    SETTINGS,
    eos_token=None,
)
