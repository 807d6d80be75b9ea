"""Save what was trained: into a staging folder first, moved into place whole, the manifest last."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer

from mudpuppy.errors import EngineError
from mudpuppy.files import fsync_folder


@contextmanager
def staging(output: Path) -> Iterator[Path]:
    """Yield a folder inside `output` whose files are moved into `output` when the block ends.

    A crash inside the block leaves no file with a final name; the staging folder is removed.
    """
    folder = output / f".saving-{os.getpid()}"
    folder.mkdir(parents=True)
    try:
        yield folder
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                _fsync_file(path)
        for path in sorted(folder.iterdir()):
            path.rename(output / path.name)
        fsync_folder(output)
    finally:
        shutil.rmtree(folder)


def _fsync_file(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


@torch.no_grad()
def save_model(model: Any, base: str, folder: Path, dtype: torch.dtype) -> None:
    """Save a plain model in `dtype`, with the tokenizer of its base.

    Raises:
        EngineError: a weight is not finite in `dtype` (FM12, FM41); nothing is saved.
    """
    for name, parameter in model.named_parameters():
        cast = parameter.data.to(dtype)
        if not bool(torch.isfinite(cast).all()):
            raise EngineError(
                f"the tensor {name} is not finite in {dtype}",
                hint="train with --precision bf16 or fp32, or lower --learning-rate",
            )
        parameter.data = cast
    model.config.use_cache = True
    model.save_pretrained(folder)
    save_tokenizer(base, folder)


def save_tokenizer(base: str, folder: Path) -> None:
    """Save the tokenizer as the base has it: a pad token that training set must not spread."""
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)


@torch.no_grad()
def save_adapter(model: Any, base: str, folder: Path) -> None:
    """Save an adapter with the tokenizer of its base.

    Raises:
        EngineError: an adapter weight is not finite.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
            raise EngineError(f"the adapter tensor {name} is not finite: the run diverged")
    for settings in model.peft_config.values():
        settings.base_model_name_or_path = base
    model.save_pretrained(folder)
    save_tokenizer(base, folder)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return the numbers of trainable and of all parameters."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trainable, sum(p.numel() for p in model.parameters())
