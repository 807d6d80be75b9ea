"""Where a base model lies, and what to say where it cannot be used."""

from __future__ import annotations

import shlex
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache

from mudpuppy.errors import ModelError


def local_folder(path: str) -> Path | None:
    """Return the folder of a model: its own, or that of a hub id in the hub's cache."""
    folder = Path(path)
    if folder.is_dir():
        return folder.resolve()
    cached = try_to_load_from_cache(path, "config.json")
    return Path(cached).parent if isinstance(cached, str) else None


def ask_the_doctor(path: str) -> str:
    """Return the hint of a base that cannot be used: a command, as a shell takes it."""
    if local_folder(path) is None:
        return f"download it first: hf download {shlex.quote(path)}"
    return f"see what is wrong with it: mudpuppy-doctor {shlex.quote(path)}"


def not_finite(path: str, name: str, dtype: torch.dtype) -> ModelError:
    """Return the error of a base with NaN or infinity in it: the first step diverges (FM41)."""
    hint = ask_the_doctor(path)
    if dtype == torch.float16:
        hint += "; if it is large, use --precision bf16 or fp32"
    return ModelError(f"{path}: the tensor {name} is not finite in {str(dtype)[6:]}", hint=hint)
