"""A model's settings, completed as transformers completes them, and why some are not exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mudpuppy.errors import shown
from mudpuppy.export.gguf.architectures.family import Settings
from mudpuppy.export.gguf.refusals import ExportRefused


def read_settings(folder: Path) -> Settings:
    """Return the settings of a model folder, those of its text part on top.

    Raises:
        ExportRefused: MP-X04, it holds an adapter, packed weights or no model; MP-X03,
            transformers does not understand config.json.
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
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        settings: dict[str, Any] = config.to_dict()
    except Exception as error:  # whatever its readers raise, the file is the cause
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ExportRefused(
            "MP-X03", f"{folder / 'config.json'}: transformers cannot read it: {reason}"
        ) from error
    # the class that saved the weights; transformers fills in none
    settings["architectures"] = raw.get("architectures")
    if isinstance(settings.get("text_config"), dict):
        text = {**settings["text_config"]}
        text.pop("architectures", None)
        settings = {**settings, **text}
    return settings


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
    except (OSError, ValueError) as error:
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
