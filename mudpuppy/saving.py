"""Save what was trained: written in a staging folder, then moved into place, the manifest last."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mudpuppy.errors import EngineError
from mudpuppy.files import fsync_folder, normal_file_mode, write_json_atomic
from mudpuppy.leftovers import MOVING_FILE, STAGING_PREFIX, remove_half_moved
from mudpuppy.provenance import PROVENANCE_FILE

SETTINGS = ("config.json", "adapter_config.json")
"""Files that a loader looks for first."""


@contextmanager
def staging(output: Path, *, manifest_follows: bool = False) -> Iterator[Path]:
    """Yield a folder inside `output` whose entries are moved into `output` when the block ends.

    An error inside the block leaves no entry with a final name. The entries are moved one by one
    once all of them are durable; that the set is complete is for its manifest to say.

    Args:
        output: where the entries go.
        manifest_follows: whether the manifest is written afterwards. The list of what was moved
            then stays until its writer calls `forget_moves`: a run that is killed between the two
            leaves files that nobody vouches for, and the next run must know whose they are.
    """
    for left in output.glob(f"{STAGING_PREFIX}*"):  # of a run that was killed
        shutil.rmtree(left)
    folder = output / f"{STAGING_PREFIX}{os.getpid()}"
    folder.mkdir(parents=True)
    try:
        yield folder
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                path.chmod(normal_file_mode())  # safetensors makes its files private
                _fsync_file(path)
            else:
                fsync_folder(path)
        # what makes a folder a model comes last: without it no loader takes half a set for a whole
        ready = sorted(folder.iterdir(), key=_turn)
        # a run that is killed between two moves finds here what of the output is not complete
        write_json_atomic(folder / MOVING_FILE, [path.name for path in ready])
        for path in ready:
            target = output / path.name
            if target.is_dir():  # of a run that was killed here, and has been resumed
                target.rename(folder / f".replaced-{path.name}")
            path.rename(target)
        fsync_folder(output)
    except BaseException:
        remove_half_moved(output)
        shutil.rmtree(folder)
        raise
    if manifest_follows and not (output / PROVENANCE_FILE).exists():
        for path in folder.iterdir():
            if path.name != MOVING_FILE:
                shutil.rmtree(path)
    else:
        shutil.rmtree(folder)


def _turn(path: Path) -> tuple[bool, bool, str]:
    """Return when an entry is moved: what makes a folder a model last, a manifest after it."""
    return path.name == PROVENANCE_FILE, path.name in SETTINGS, path.name


def _fsync_file(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


@torch.no_grad()
def save_model(model: Any, tokenizer: Any, folder: Path, dtype: torch.dtype) -> None:
    """Save a plain model in `dtype` with its tokenizer.

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
    if hasattr(model.config, "use_cache"):  # it was off while training only
        model.config.use_cache = True
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def save_adapter(model: Any, tokenizer: Any, folder: Path, base: str) -> None:
    """Save an adapter with its tokenizer; `base` is what loaders will find the base by.

    Raises:
        EngineError: an adapter weight is not finite.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
            raise EngineError(f"the adapter tensor {name} is not finite: the run diverged")
    for settings in model.peft_config.values():
        settings.base_model_name_or_path = base
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


CARD = """\
---
library_name: peft
tags: [lora, mudpuppy]
---

# LoRA adapter

Trained by mud-puppy with `--method {method}` on the base model `{base}`. What it was made from, and
how, is in `mudpuppy.json`; whether it is healthy: `mudpuppy-doctor` on this folder.

```python
from peft import PeftModel
from transformers import {auto_class}

model = PeftModel.from_pretrained({opened}, "path/to/this/folder")
```
"""


def write_card(
    folder: Path,
    method: str,
    base: str,
    auto_class: str = "AutoModelForCausalLM",
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Replace PEFT's empty model card, which also names a local path, by a short true one.

    Args:
        folder: the adapter's folder.
        method: how it was trained.
        base: the base model as it was asked for; only the last part of a local path is named.
        auto_class: transformers' class that opens the base.
        settings: further arguments of its `from_pretrained`.
    """
    words = ["BASE", *(f"{name}={value!r}" for name, value in (settings or {}).items())]
    opened = f"{auto_class}.from_pretrained({', '.join(words)})"
    shown = Path(base).name if Path(base).is_dir() else base
    (folder / "README.md").write_text(
        CARD.format(method=method, base=shown, auto_class=auto_class, opened=opened),
        encoding="utf-8",
    )
