"""The form of a scenario file: what to vary, what is expected of each cell (design, rules 1 to 3).

Axes, `include`, `exclude` and explicit rows work as in CI matrices: the product of the axes is
taken, excluded rows are left out, included settings are added to the rows they name, and the
scenarios come after it. A scenario with axes of its own is the base of a product of its own.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from mudpuppy.errors import near_names
from mudpuppy.features import FEATURES, METHODS, PRECISIONS

SCENARIO_SCHEMA_VERSION = 1
"""The only form that exists so far."""

DEFAULT_TIMEOUT_S = 300.0
"""Time a cell may take when its file says nothing."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=80)]
Seconds = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)]
Bytes = Annotated[int, Field(ge=1 << 26, le=1 << 44)]
Names = tuple[str, ...] | Literal["all"]
Strength = Annotated[int, Field(ge=1, le=4)]
FEATURE_AXIS = "feature"
"""The axis that is no setting: features of the rule table, alone or joined by `+`, or `none`."""
ALL = "all"
WORDS_FOR_ALL = {
    "method": [*METHODS],
    "precision": [*PRECISIONS],
    FEATURE_AXIS: ["none", *FEATURES],
}
"""What `all` stands for, by the axis or the part of a covering array."""


def _spell_out(axes: Any) -> Any:
    """Put the values of the rule table where an axis says `all`."""
    if not isinstance(axes, dict):
        return axes
    return {
        key: WORDS_FOR_ALL[key] if value == ALL and key in WORDS_FOR_ALL else value
        for key, value in axes.items()
    }


Axes = Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], BeforeValidator(_spell_out)]
Trial = Literal[
    "training", "lifecycle", "fault", "soak", "limits", "interop", "versions", "curriculum"
]
"""What is done with the settings of a cell: `harness/trials/` has a file for each."""
Need = Literal["gpu", "two-gpus", "network", "root"]
"""Something a machine may not have; a cell that needs it is not run there."""


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Expectation(_Form):
    """What must come out of a cell; anything else is a failure, success included."""

    outcome: Literal["trained", "rejected"] = "trained"
    """`trained`: it runs and its probes are clean; `rejected`: refused before writing anything."""
    code: Annotated[str, Field(pattern=r"^MP-R\d{2,3}$")] | None = None
    """Code of the rule that must reject it; only with `rejected`, and required there."""
    findings: tuple[Annotated[str, Field(pattern=r"^MPD\d{3}$")], ...] = ()
    """Probes that must find something (planted damage): their silence is the failure."""
    stops_early: bool = False
    """Training must end before its last step."""

    @model_validator(mode="after")
    def _check_together(self) -> Expectation:
        if self.outcome == "rejected" and self.code is None:
            raise ValueError("a rejection needs the code it must come with, such as code: MP-R07")
        if self.outcome == "trained" and self.code is not None:
            raise ValueError("a code belongs to outcome: rejected")
        if self.outcome == "rejected" and (self.findings or self.stops_early):
            raise ValueError("a rejected cell leaves nothing to probe or to stop early")
        return self


class Scenario(_Form):
    """One explicit cell, or with `axes` the base of several."""

    name: Name
    """Readable and unique in its file; the cell's name in every table."""
    title: str = ""
    """What is tried, as a person would say it; by default the name."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Settings of `mudpuppy.config.TrainingConfig`, over the defaults of the file."""
    axes: Axes = Field(default_factory=dict)
    """Settings to vary; the product is taken and their values are appended to the name."""
    expect: Expectation | None = None
    """What a person decided must happen; without it the rule table decides."""
    timeout_s: Seconds | None = None
    """Seconds the cell may take; by default those of the file."""
    trial: Trial | None = None
    """What is done with the settings; by default what the file says."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Settings of the trial, over those of the file."""
    needs: tuple[Need, ...] = ()
    """What the machine must have, beside what the rule table asks for."""
    needs_fresh: bool = False
    """Whether it must run in an interpreter of its own and not in a fork of a warm one."""
    memory_limit: Bytes | None = None
    """Bytes of private memory that each of its processes may have."""


class Covering(_Form):
    """Rows in which features meet: a covering array for each method at each precision."""

    method: Names = "all"
    """Methods of the rule table."""
    precision: Names = "all"
    """Precisions of the rule table."""
    feature: Names = "all"
    """Features of the rule table that are on or off."""
    strength: Strength = 2
    """How many features meet, on and off in every way that the rule table accepts."""
    apart: tuple[str, ...] = ()
    """Features that are on in rows of their own only, as those rows cost much or need a machine
    of their own."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Another seed gives other rows that cover as much."""

    @model_validator(mode="after")
    def _check_names(self) -> Covering:
        parts = {"method": self.method, "precision": self.precision}
        parts |= {FEATURE_AXIS: self.feature, "apart": self.apart}
        for part, names in parts.items():
            known = [*FEATURES] if part in (FEATURE_AXIS, "apart") else WORDS_FOR_ALL[part]
            strange = [] if names == ALL else [name for name in names if name not in known]
            if strange:
                near = near_names(strange[0], known)
                raise ValueError(f"'{strange[0]}' is no {part} of the rule table{near}")
        return self


class ScenarioFile(_Form):
    """A whole scenario file."""

    schema_version: Literal[1]
    """Version of this form."""
    name: Name
    """Name of the matrix; its results go to `runs/<name>/`."""
    description: str = ""
    """What the matrix is for, in a sentence or two."""
    defaults: dict[str, Any] = Field(default_factory=dict)
    """Settings that every cell starts from; paths are relative to the file."""
    timeout_s: Seconds = DEFAULT_TIMEOUT_S
    """Seconds a cell may take."""
    trial: Trial = "training"
    """What is done with the settings of every cell."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Settings of the trial."""
    extends: Name | None = None
    """Another file of the folder: its defaults, its includes and its time limit are taken over."""
    axes: Axes = Field(default_factory=dict)
    """Settings to vary over the defaults; the product is taken. `feature` names features of the
    rule table; `all` stands for every method, precision or feature."""
    include: tuple[dict[str, Any], ...] = ()
    """Further settings for some cells: those that have the method, precision, feature or value of
    an axis that the row names (several in a list) get its other settings."""
    exclude: tuple[dict[str, Any], ...] = ()
    """Rows left out of products: a cell that has all the values of a row."""
    covering: Covering | None = None
    """Covering arrays, after the product."""
    scenarios: tuple[Scenario, ...] = ()
    """Explicit rows, after the product."""

    @model_validator(mode="after")
    def _check_together(self) -> ScenarioFile:
        if not (self.axes or self.scenarios or self.covering):
            raise ValueError("there is nothing to run: give 'axes', 'scenarios' or 'covering'")
        if self.exclude and not (self.axes or any(one.axes for one in self.scenarios)):
            raise ValueError("'exclude' has no effect without 'axes'")
        return self
