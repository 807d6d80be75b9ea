"""Names that stand for an embedded model wherever a path may stand: `tiny`, `tiny:qwen2`."""

from __future__ import annotations

from mudpuppy.errors import ModelError, near_names

FAMILIES = (
    "llama",
    "llama-tied",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "phi3",
    "mistral",
    "mixtral",
    "llava",
    "qwen2-vl",
)
"""Families of random tiny models; `llama` has its own output matrix, `llama-tied` has not."""


def is_tiny_name(name: str) -> bool:
    """Return whether `name` asks for an embedded model; `./tiny` is how to mean a folder."""
    return name == "tiny" or name.startswith("tiny:")


def check_family(family: str) -> None:
    """Raise ModelError, with the near names, unless `family` is known."""
    if family not in FAMILIES:
        near = near_names(family, FAMILIES)
        known = ", ".join(f"tiny:{name}" for name in FAMILIES)
        raise ModelError(
            f"there is no embedded model 'tiny:{family}'{near}", hint=f"known: tiny, {known}"
        )
