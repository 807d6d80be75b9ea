"""What a file calls a module of the live model: transformers renames some while it loads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from mudpuppy.errors import ModelError, near_names, shown
from mudpuppy.safefile import TensorEntry

HEADS = ("lm_head", "embed_out")
"""Last names of an output layer."""
RENAMES: tuple[tuple[tuple[str, str], ...], ...] = (
    (),
    (
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("lm_head", "language_model.lm_head"),
    ),
    (("model.language_model.", "model."), ("model.visual.", "visual.")),
    (("model.", ""),),
    (("transformer.", ""),),
    (("", "model."),),
    (("", "transformer."),),
)
"""Beginnings of names: in the live model, and in the file. One row is one way of naming."""


def choose_renames(
    folder: Path, modules: Iterable[str], base: Mapping[str, TensorEntry]
) -> tuple[tuple[str, str], ...]:
    """Return the renames under which every module is in the file; an output layer may be absent.

    Raises:
        ModelError: there are none; names the first module that the plain names miss.
    """
    known = {name.rpartition(".")[0] for name in base}
    heads = (*HEADS, "score", "classifier")
    wanted = [name for name in modules if name.rpartition(".")[2] not in heads]
    for renames in RENAMES:
        if all(rename(name, renames) in known for name in wanted):
            return renames
    missing = [name for name in wanted if name not in known]
    raise ModelError(
        f"{folder}: {len(missing)} of {len(wanted)} adapted modules are not in the base, such as "
        f"{shown(missing[0])}{near_names(missing[0], known)}",
        hint="merge it with the base that its adapter_config.json names",
    )


def rename(name: str, renames: tuple[tuple[str, str], ...]) -> str:
    """Return what the file calls a module of the live model."""
    for live, filed in renames:
        if name.startswith(live):
            return filed + name.removeprefix(live)
    return name
