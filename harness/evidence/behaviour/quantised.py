"""Open models in few bits with the engine's readers, where transformers would want a package more.

The readers hold a folder against what it declares before they use it, and run no code of it. GPTQ
becomes plain weights, whoever wrote it; int8 is opened where this project wrote it, as the layers
that were trained; what else compressed-tensors can hold is left to its own package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

GPTQ, COMPRESSED = "gptq", "compressed-tensors"
OURS = "mudpuppy "
"""Beginning of what this project calls itself in `producer`."""
DTYPES = ("float32", "bfloat16", "float16")
Reader = Callable[[Path], Any]
"""Opens a folder, and returns the transformers model on the CPU."""


def choose_reader(folder: Path) -> Reader | None:
    """Return what opens a model folder in place of transformers, or None where that does.

    Raises:
        ModelError: config.json cannot be read, or declares what nobody writes.
    """
    from mudpuppy.quant.declared import find_declared, read_settings

    settings = read_settings(folder)
    declared = find_declared(folder, settings)
    method = declared.get("quant_method")
    if method == GPTQ:
        return lambda view: _open_gptq(view, settings)
    if method == COMPRESSED and str(declared.get("producer", "")).startswith(OURS):
        return _open_int8
    return None


def _open_gptq(folder: Path, settings: Mapping[str, Any]) -> Any:
    """Open a GPTQ folder in the type it declares, in which its weights were quantised.

    Raises:
        ModelError: it is damaged (MP-Q01 to MP-Q05).
    """
    import torch

    from mudpuppy.quant.gptq_read import load_gptq

    named = settings.get("dtype") or settings.get("torch_dtype")
    dtype = getattr(torch, named) if named in DTYPES else torch.bfloat16
    return load_gptq(folder, dtype)


def _open_int8(folder: Path) -> Any:
    """Open an int8 folder.

    Raises:
        ModelError: it is damaged.
    """
    from mudpuppy.quant.int8 import load_int8

    return load_int8(folder)
