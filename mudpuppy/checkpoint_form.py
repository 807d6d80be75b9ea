"""What a checkpoint's own files must say, and which there must be, before anything believes it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

STATE_FILE = "trainer_state.json"
FP8_HISTORY_FILE = "fp8_history.safetensors"
"""File of a checkpoint that holds what delayed fp8 scales follow."""
BLOCK_FILE = "block.safetensors"
"""The one block of a checkpoint of GPTQ, which has no optimizer and no schedule."""


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, or nested too deeply.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def has_form(manifest: Mapping[str, Any]) -> bool:
    """Return whether the files and the identity of a manifest have the form that we write."""
    files, identity = manifest.get("files"), manifest.get("identity")
    if not isinstance(files, dict) or not isinstance(identity, dict):
        return False
    return (
        all(_is_file_entry(name, entry) for name, entry in files.items())
        and isinstance(identity.get("settings"), dict)
        and isinstance(identity.get("samples"), str)
        and type(identity.get("processes")) is int
        and isinstance(identity.get("versions"), dict)
        and isinstance(identity.get("base", 0), str | None)
    )


def _is_file_entry(name: str, entry: Any) -> bool:
    is_inside = not Path(name).is_absolute() and ".." not in Path(name).parts
    return (
        is_inside
        and isinstance(entry, dict)
        and type(entry.get("bytes")) is int
        and isinstance(entry.get("sha256"), str)
    )


def needs_older(identity: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint is worth something with all the older ones only: GPTQ's are."""
    return bool(identity["settings"].get("method") == "gptq")


def find_lacking(names: Iterable[str], identity: Mapping[str, Any]) -> str:
    """Return the first thing that an exact resumption needs and that is not listed, or nothing.

    Args:
        names: files of the checkpoint, below its folder.
        identity: what the run is made of, in the form that `has_form` asks for.
    """
    listed = set(names)
    settings, processes = identity["settings"], identity["processes"]
    if needs_older(identity):
        return next((name for name in (STATE_FILE, BLOCK_FILE) if name not in listed), "")
    wanted = [STATE_FILE, "scheduler.pt"]
    if settings.get("precision") == "fp16":
        wanted.append("scaler.pt")
    if (settings.get("precision"), settings.get("fp8_scaling")) == ("fp8", "delayed"):
        wanted.append(FP8_HISTORY_FILE)
    if processes > 1:
        wanted += [f"rng_state_{rank}.pth" for rank in range(processes)]
    else:
        wanted.append("rng_state.pth")
    is_sharded = settings.get("fsdp", "none") != "none"
    if not is_sharded:
        wanted.append("optimizer.pt")
    elif not any(name.startswith("optimizer") for name in listed):
        return "the optimizer"
    if not any(name.startswith(("adapter_model", "model", "pytorch_model")) for name in listed):
        return "the weights"
    return next((name for name in wanted if name not in listed), "")


def find_state_fault(state: Any, step: int) -> str:
    """Return what is wrong with the trainer's account of where it was, or nothing."""
    if not isinstance(state, dict):
        return "it is no mapping"
    if state.get("global_step") != step:
        return f"it is of step {state.get('global_step')!r:.20} instead of {step}"
    if type(state.get("best_global_step")) not in (int, type(None)):
        return "best_global_step is no number"
    value: Any = state
    for key in ("stateful_callbacks", "TrainerControl", "args"):
        value = value.get(key, {})
        if not isinstance(value, dict):
            return f"{key} is no mapping"
    return ""
