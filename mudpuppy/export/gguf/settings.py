"""A model's settings, completed as transformers completes them, and why some are not exported.

transformers itself is not asked: its settings import torch, which takes longer than the export of a
small model. The defaults stand with the families, and tests hold them against transformers'.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mudpuppy.errors import shown
from mudpuppy.export.gguf.architectures import find_family
from mudpuppy.export.gguf.architectures.family import Family, Settings, head_size, refuse
from mudpuppy.export.gguf.refusals import ExportRefused

SCALED = ("llama3", "yarn", "longrope")
"""Rotations that go by the context that a model was first trained with."""


def read_settings(folder: Path) -> Settings:
    """Return the settings of a model folder, those of its text part on top.

    Raises:
        ExportRefused: MP-X04, it holds an adapter, packed weights or no model; MP-X03, config.json
            cannot be read; MP-X01, the architecture is unknown.
    """
    raw = _read_config(folder)
    if isinstance(packed := raw.get("quantization_config"), dict):
        method = packed.get("quant_method") or packed.get("format") or "some"
        raise ExportRefused(
            "MP-X04",
            f"{folder} holds weights that are packed already ({shown(method)}): GGUF would round "
            "them a second time",
            hint="export the model that it was made from; for a QLoRA run that is the folder "
            "`merged` of its output (--merge-lora), or: mud-puppy merge BASE ADAPTER MERGED",
        )
    return complete(raw, find_family(raw))


def complete(raw: Mapping[str, Any], family: Family) -> Settings:
    """Return settings with what transformers takes where config.json is silent.

    Args:
        raw: config.json.
        family: of the model.

    Raises:
        ExportRefused: MP-X03, a setting has another form than settings have.
    """
    text = raw.get("text_config")
    settings: dict[str, Any] = {
        **family.defaults,
        **raw,
        **(text if isinstance(text, dict) else {}),
    }
    settings["architectures"] = raw.get("architectures")
    heads = settings.get("num_attention_heads")
    if settings.get("num_key_value_heads") is None:
        settings["num_key_value_heads"] = heads
    if family.fills_head and settings.get("head_dim") is None:
        settings["head_dim"] = head_size(settings)
    if settings.get("use_sliding_window") is False:
        settings["sliding_window"] = None
    for key in ("rope_parameters", "rope_scaling"):
        _check_rope(key, settings.get(key), family)
    settings["rope_parameters"] = _alternating(settings) if family.alternates else _single(settings)
    return settings


def _check_rope(key: str, rope: Any, family: Family) -> None:
    if not isinstance(rope, dict | None):
        raise refuse(f"config.json: {key} is {shown(rope)}, not an object")
    for kind in ("full_attention", "sliding_attention"):
        part = (rope or {}).get(kind)
        if part is not None and not (family.alternates and isinstance(part, dict)):
            raise refuse(f"config.json: {key} has {kind} {shown(part)}")


def _single(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return how positions are rotated in all blocks, in transformers' words of today.

    Older settings lie beside `rope_scaling`, or call its type otherwise.
    """
    rope = dict(settings.get("rope_scaling") or settings.get("rope_parameters") or {})
    rope.setdefault("rope_theta", settings["rope_theta"])
    if settings.get("partial_rotary_factor") is not None:
        rope.setdefault("partial_rotary_factor", settings["partial_rotary_factor"])
    rope.setdefault("rope_type", rope.get("type", "default"))
    key = "original_max_position_embeddings"
    if settings.get(key) is not None and rope["rope_type"] in SCALED:
        rope[key] = settings[key]
    elif settings.get(key) is not None:
        rope.setdefault(key, settings[key])
    elif rope["rope_type"] in SCALED:
        rope.setdefault(key, settings.get("max_position_embeddings"))
    return rope


def _alternating(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same for models whose blocks with and without a window rotate differently."""
    given = settings.get("rope_parameters") or {}
    near, far = (
        {"rope_type": "default", **(given.get(kind) or {})}
        for kind in ("sliding_attention", "full_attention")
    )
    far |= settings.get("rope_scaling") or {}
    if "type" in far:
        far["rope_type"] = far["type"]
    far.setdefault("rope_theta", settings["rope_theta"])
    near.setdefault("rope_theta", settings["rope_local_base_freq"])
    return {"sliding_attention": near, "full_attention": far}


def _read_config(folder: Path) -> dict[str, Any]:
    """Return config.json as it stands."""
    path = folder / "config.json"
    if (folder / "adapter_config.json").is_file() and not path.is_file():
        raise _adapter(folder)
    if not path.is_file():
        raise ExportRefused(
            "MP-X04",
            f"{folder} has no config.json",
            hint="name the folder that save_pretrained or `mud-puppy merge` wrote",
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        marked = error.msg.startswith("Unexpected UTF-8 BOM")
        hint = "save it as UTF-8 without a BOM, which transformers does not read either"
        raise ExportRefused("MP-X03", f"{path}: {error}", hint=hint if marked else "") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ExportRefused("MP-X03", f"{path}: {error}") from error
    if not isinstance(raw, dict):
        raise ExportRefused("MP-X03", f"{path}: expected an object, found {shown(raw)}")
    return raw


def _adapter(folder: Path) -> ExportRefused:
    """Return the refusal of an adapter, with the line that makes a model of it."""
    try:
        said = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base = said.get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None  # the adapter's own faults are not what is asked here
    return ExportRefused(
        "MP-X04",
        f"{folder} is an adapter: a GGUF file holds a whole model",
        hint=f"mud-puppy merge {base if isinstance(base, str) and base else 'BASE'} {folder} "
        f"{folder.with_name(folder.name + '-merged')}",
    )
