"""The form of a scenario file: what to vary, what is expected of each cell (design, rules 1 to 3).

Axes, `exclude` and explicit rows work as in CI matrices: the product of the axes is taken, excluded
rows are left out, and the scenarios are added after it. A scenario with axes of its own is the base
of a product of its own.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCENARIO_SCHEMA_VERSION = 1
"""The only form that exists so far."""

DEFAULT_TIMEOUT_S = 300.0
"""Time a cell may take when its file says nothing."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=80)]
Seconds = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)]
Bytes = Annotated[int, Field(ge=1 << 26, le=1 << 44)]
Axes = dict[str, Annotated[list[Any], Field(min_length=1)]]
Trial = Literal["training", "lifecycle", "fault", "soak", "limits", "interop", "versions"]
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
    axes: Axes = Field(default_factory=dict)
    """Settings to vary over the defaults; the product is taken."""
    exclude: tuple[dict[str, Any], ...] = ()
    """Rows left out of products: a cell that has all the values of a row."""
    scenarios: tuple[Scenario, ...] = ()
    """Explicit rows, after the product."""

    @model_validator(mode="after")
    def _check_together(self) -> ScenarioFile:
        if not self.axes and not self.scenarios:
            raise ValueError("there is nothing to run: give 'axes', 'scenarios' or both")
        if self.exclude and not (self.axes or any(one.axes for one in self.scenarios)):
            raise ValueError("'exclude' has no effect without 'axes'")
        return self
