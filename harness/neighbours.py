"""The neighbours of a cell: the same trial with another method, precision or set of features.

Where the cell comes from axes of its file, so does the neighbour, with the data and rates that the
file gives to its method; and it is the very cell that the file would have. Else it has the cell's
own settings, with what carries a feature set back to its default.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from harness.axes import TOGETHER
from harness.matrix import Cell, expand
from mudpuppy.config import SWITCHES, TrainingConfig
from mudpuppy.errors import ConfigError
from mudpuppy.features import FEATURES
from scenarios.loader import LoadedScenarios
from scenarios.schema import Scenario, ScenarioFile

PLAIN_METHOD = "lora"
PLAIN_PRECISION = "fp32"
"""Method and precision that need no explanation."""


@dataclass(frozen=True)
class Combination:
    """One point of the rule table."""

    method: str
    """One of `mudpuppy.features.METHODS`."""
    precision: str
    """One of `mudpuppy.features.PRECISIONS`."""
    features: frozenset[str] = frozenset()
    """Names of `mudpuppy.features.FEATURES`."""

    @property
    def factors(self) -> tuple[str, ...]:
        """What distinguishes it from plain LoRA in fp32, in the order of the tables."""
        method = () if self.method == PLAIN_METHOD else (f"method={self.method}",)
        precision = () if self.precision == PLAIN_PRECISION else (f"precision={self.precision}",)
        return (*method, *precision, *(name for name in FEATURES if name in self.features))

    @classmethod
    def of_factors(cls, factors: tuple[str, ...]) -> Combination:
        """Return the combination that has these factors and no others."""
        named = dict(factor.split("=") for factor in factors if "=" in factor)
        return cls(
            named.get("method", PLAIN_METHOD),
            named.get("precision", PLAIN_PRECISION),
            frozenset(factor for factor in factors if "=" not in factor),
        )

    def __str__(self) -> str:
        return " + ".join(
            [self.method, self.precision, *(name for name in FEATURES if name in self.features)]
        )


Neighbour = Callable[[Combination], Cell | None]
"""Returns the cell of a combination, or None where there is none."""


def combination_of(cell: Cell) -> Combination:
    """Return where a cell stands in the rule table."""
    return Combination(cell.config["method"], cell.config["precision"], cell.features)


def find_neighbours(loaded: LoadedScenarios, cell: Cell, model: str | None = None) -> Neighbour:
    """Return what makes the neighbours of a cell.

    Args:
        loaded: the file that the cell is from.
        cell: a cell whose trial is training.
        model: model that was given instead of the one in the file.
    """

    def by_axes(wanted: Combination) -> Cell | None:
        axes = {
            "method": [wanted.method],
            "precision": [wanted.precision],
            "feature": [TOGETHER.join(n for n in FEATURES if n in wanted.features) or "none"],
        }
        return _expand_one(loaded, {"axes": axes}, model)

    def by_settings(wanted: Combination) -> Cell | None:
        if wanted.method != cell.config["method"]:
            return None  # other methods want other data, and the file does not say which
        settings = _set_back(cell, wanted)
        scenario = Scenario(name="neighbour", config=settings, timeout_s=cell.timeout_s)
        changes = {"scenarios": (scenario,), "defaults": {}, "include": (), "axes": {}}
        return _expand_one(loaded, changes, None)

    own = by_axes(combination_of(cell))
    return by_axes if own is not None and own.cell_id == cell.cell_id else by_settings


def _expand_one(loaded: LoadedScenarios, changes: dict[str, Any], model: str | None) -> Cell | None:
    """Return the one cell of a changed file; None where its settings cannot be."""
    others = {"covering": None, "scenarios": (), "exclude": ()}
    form: ScenarioFile = loaded.form.model_copy(update=others | changes)
    try:
        (cell,) = expand(replace(loaded, form=form, inherited=len(form.include)), model=model)
    except ConfigError:
        return None
    return cell


def _set_back(cell: Cell, wanted: Combination) -> dict[str, Any]:
    """Return a cell's settings without the features that are not wanted."""
    settings = {**cell.config, "precision": wanted.precision}
    for name in cell.features - wanted.features:
        field = SWITCHES[name][0]
        settings[field] = TrainingConfig.model_fields[field].default
    return settings
