"""Where a base model lies, and what to say where it cannot be used."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from mudpuppy.errors import ModelError
from mudpuppy.tiny import resolve_model
from mudpuppy.tiny.names import is_tiny_name

if TYPE_CHECKING:
    import torch


def local_folder(path: str) -> Path | None:
    """Return the folder of a model: its own, or that of a hub id in the hub's cache."""
    folder = Path(path)
    if folder.is_dir():
        return folder.resolve()
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(path, "config.json")
    return Path(cached).parent if isinstance(cached, str) else None


def find_folder(model: str) -> Path:
    """Return the folder of a model on this machine.

    Raises:
        ModelError: there is none.
    """
    if is_tiny_name(model):
        return Path(resolve_model(model))
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.exists() or model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise ModelError(
            f"the model folder {model} does not exist",
            hint="name the folder that holds config.json",
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise ModelError(
            f"{model} is neither a folder nor in the hub's cache on this machine",
            hint=f"download it first: hf download {model}",
        ) from error


def ask_the_doctor(path: str) -> str:
    """Return the hint of a base that cannot be used: a command, as a shell takes it."""
    if local_folder(path) is None:
        return f"download it first: hf download {shlex.quote(path)}"
    return f"see what is wrong with it: mudpuppy-doctor {shlex.quote(path)}"


def not_finite(path: str, name: str, dtype: torch.dtype) -> ModelError:
    """Return the error of a base with NaN or infinity in it: the first step diverges (FM41)."""
    kind, hint = str(dtype).removeprefix("torch."), ask_the_doctor(path)
    if kind == "float16":
        hint += "; if it is large, use --precision bf16 or fp32"
    return ModelError(f"{path}: the tensor {name} is not finite in {kind}", hint=hint)
