"""The architectures that can be written, one module a family."""

from __future__ import annotations

from mudpuppy.errors import near_names, shown
from mudpuppy.export.gguf.architectures.family import Family, Settings
from mudpuppy.export.gguf.architectures.gemma import GEMMA2, GEMMA3
from mudpuppy.export.gguf.architectures.llama import LLAMA, MISTRAL, MIXTRAL
from mudpuppy.export.gguf.architectures.phi import PHI3
from mudpuppy.export.gguf.architectures.qwen import QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE
from mudpuppy.export.gguf.refusals import ExportRefused

FAMILIES = (LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN3, QWEN2_MOE, QWEN3_MOE, GEMMA2, GEMMA3, PHI3)
CLASSES = {name: family for family in FAMILIES for name in family.classes}
"""Families by transformers' classes."""


def find_family(settings: Settings) -> Family:
    """Return the family of a model.

    Raises:
        ExportRefused: MP-X01, it is none of those that are known.
    """
    named = settings.get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    if name in CLASSES:
        return CLASSES[name]
    near = near_names(str(name), CLASSES)
    raise ExportRefused(
        "MP-X01",
        f"config.json: architectures is {shown(named)}, which is not written as GGUF{near}",
        hint=f"known are {', '.join(sorted(CLASSES))}; for others there is llama.cpp's "
        "convert_hf_to_gguf.py",
    )
