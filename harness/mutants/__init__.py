"""Bugs to plant in the engine, in a cell's own process, to see whether the matrix catches them.

    mudpuppy-pressure mutants [NAME ...]

Each is one that an engine really had, or could have; the source is named. A matrix that stays green
under any of them is worthless there. One file for each part of the engine.
"""

from __future__ import annotations

import importlib

from harness.mutants.form import CELLS, Mutant
from mudpuppy.errors import ConfigError, near_names

AREAS = (
    *("masking", "template", "freezing", "scaling", "merge", "saving", "resuming", "packing"),
    *("accumulating", "schedules", "computing", "quantising", "ranges", "memory"),
    *(
        "preferring",
        "unlearning",
        "generating",
        "pictures",
        "stopping",
        "rejecting",
        "logs",
        "accounting",
    ),
)
"""The modules of this package that hold mutants."""

__all__ = ("AREAS", "CELLS", "MUTANTS", "Mutant", "plant_mutant")


def _collect() -> dict[str, Mutant]:
    found: dict[str, Mutant] = {}
    for area in AREAS:
        module = importlib.import_module(f"{__name__}.{area}")
        for value in vars(module).values():
            if isinstance(value, Mutant):
                assert value.name not in found, f"two mutants are called {value.name}"
                found[value.name] = value
    return found


MUTANTS = _collect()
"""Every bug that can be planted, by name."""


def plant_mutant(name: str) -> None:
    """Plant one bug in this process.

    Raises:
        ConfigError: there is none of that name.
        AttributeError: the engine has no longer what the bug changes.
    """
    if name not in MUTANTS:
        raise ConfigError([f"no planted bug is called '{name}'{near_names(name, MUTANTS)}"])
    MUTANTS[name].plant()
