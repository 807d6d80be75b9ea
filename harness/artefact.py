"""Describe the folders that a run left, by their files alone: settings, types, tokenizer, ends.

Read by the worker after training and judged by probes; no torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.evidence.files.headers import read_weight_file
from harness.observations import ArtefactFacts

SPECIALS = ("bos_token", "eos_token", "pad_token", "unk_token")
OF_SAVING = frozenset(
    {
        *("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"),
        *("quantization_config", "problem_type", "num_labels", "id2label", "label2id"),
    }
)
"""Settings of config.json that saving, quantising or another head rightly change."""
FLOATS = ("F64", "F32", "F16", "BF16")


def describe_artefact(name: str, folder: Path, base: Path, *, speaks: bool = True) -> ArtefactFacts:
    """Return the facts about one artefact, compared with its base.

    Args:
        name: which artefact.
        folder: its folder.
        base: the folder of its base.
        speaks: whether it generates; what only scores has no generation config.
    """
    settings = _read(folder / "adapter_config.json")
    quantisation = _read(folder / "config.json").get("quantization_config") or {}
    targets = settings.get("target_modules") or ()
    return ArtefactFacts(
        artefact=name,
        dtypes=_float_types(folder),
        lora_r=settings.get("r"),
        lora_alpha=settings.get("lora_alpha"),
        lora_dropout=settings.get("lora_dropout"),
        lora_targets=(targets,) if isinstance(targets, str) else tuple(sorted(targets)),
        group_size=quantisation.get("group_size"),
        vocabulary_kept=_vocabulary(folder) == _vocabulary(base),
        template_kept=read_template(folder) == read_template(base),
        eos_kept=name == "adapter" or not speaks or _eos(folder) == _eos(base),
        specials_kept=_specials(folder) == _specials(base),
        dora=bool(settings.get("use_dora")),
        rslora=bool(settings.get("use_rslora")),
        config_changed=_changes(_read(folder / "config.json"), _read(base / "config.json"), speaks),
    )


def _changes(found: dict[str, Any], base: dict[str, Any], speaks: bool) -> tuple[str, ...]:
    """Return the settings that differ, by path; a folder without config.json has none."""
    if not found:
        return ()
    # What only scores must know its padding, to find the end of a row.
    free = OF_SAVING if speaks else OF_SAVING | {"pad_token_id"}
    differing = []
    for name in sorted((set(found) | set(base)) - free):
        new, old = found.get(name), base.get(name)
        if isinstance(new, dict) and isinstance(old, dict):
            differing += [f"{name}.{inner}" for inner in _changes(new, old, speaks)]
        elif new != old:
            differing.append(name)
    return tuple(differing)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value = json.loads(path.read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}


def _float_types(folder: Path) -> tuple[str, ...]:
    found: set[str] = set()
    for path in folder.glob("*.safetensors"):
        found |= {tensor.dtype for tensor in read_weight_file(path, path.name).tensors}
    return tuple(sorted(found & set(FLOATS)))


def _vocabulary(folder: Path) -> Any:
    """Return what decides the ids: the vocabulary and the added tokens."""
    value = _read(folder / "tokenizer.json")
    added = [(token["id"], token["content"]) for token in value.get("added_tokens", [])]
    return (value.get("model") or {}).get("vocab"), added


def read_template(folder: Path) -> Any:
    """Return the chat template of a folder, or None where it has none."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    return _read(folder / "tokenizer_config.json").get("chat_template")


def _specials(folder: Path) -> dict[str, Any]:
    """Return the tokens with a part to play, by the part: what begins, ends and pads."""
    settings = _read(folder / "tokenizer_config.json")
    found = {part: settings.get(part) for part in SPECIALS}
    return {part: x.get("content") if isinstance(x, dict) else x for part, x in found.items()}


def _eos(folder: Path) -> Any:
    return _read(folder / "generation_config.json").get("eos_token_id")
