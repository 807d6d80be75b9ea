"""Everything that can be refused before torch is imported and before a file is written."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from mudpuppy.config import TrainingConfig
from mudpuppy.data.chat import ChatSample, read_chat
from mudpuppy.errors import ModelError, OutputError, near_names
from mudpuppy.tiny import is_tiny_name

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def preflight(config: TrainingConfig) -> tuple[ChatSample, ...]:
    """Check output folder, model path and dataset, in the order of their cost; return the samples.

    Raises:
        OutputError: the output folder is not empty or cannot be made.
        ModelError: the model path does not exist or is no model.
        DatasetError: the dataset has unusable lines.
    """
    check_output(config.output)
    check_model(config.model)
    samples = read_chat(config.dataset)
    prove_writable(config.output)
    return samples


LEFTOVERS = ("steps.jsonl", ".saving-")
"""Beginnings of the names that a run leaves behind when it is stopped before it has saved."""


def check_output(folder: Path) -> None:
    """Refuse an output path that is a file or a folder with something in it.

    What a run of ours left when it was stopped does not count: nothing in it was finished.
    """
    if folder.is_dir() and not all(p.name.startswith(LEFTOVERS) for p in folder.iterdir()):
        raise OutputError(
            f"the output folder {folder} is not empty",
            hint=f"name another folder with --output, or remove it: rm -r {folder}",
        )
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"the output path {folder} is a file", hint="name a folder")
    parent = next(p for p in [folder, *folder.parents] if p.exists())
    if not parent.is_dir():
        raise OutputError(f"the output folder {folder} cannot be made: {parent} is a file")


def prove_writable(folder: Path) -> None:
    """Make the output folder and take it away again: permissions alone do not tell.

    Raises:
        OutputError: it cannot be made, or nothing can be written into it.
    """
    made = [p for p in [folder, *folder.parents] if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"the output folder {folder} cannot be written: {reason}",
            hint="name another folder with --output",
        ) from None
    finally:
        for path in made:
            if path.is_dir():
                path.rmdir()


def check_model(name: str) -> None:
    """Refuse a model name that cannot be a folder, a hub id or the embedded model."""
    if is_tiny_name(name):
        return
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "config.json").is_file():
            return
        if (path / "adapter_config.json").is_file():
            raise ModelError(
                f"{name} is an adapter, not a model",
                hint="train on the model it was made for, or merge it first (--merge-lora)",
            )
        raise ModelError(f"{name} holds no config.json", hint="name a model folder")
    if path.exists():
        raise ModelError(f"{name} is a file", hint="name the folder that holds config.json")
    looks_local = name.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(name)
    if looks_local:
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = near_names(path.name, beside)
        raise ModelError(
            f"the model path {name} does not exist{near}",
            hint="name a folder, a hub id such as Qwen/Qwen2.5-0.5B-Instruct, or 'tiny'",
        )
