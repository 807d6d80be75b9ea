"""What the trials other than training measured: plain, frozen facts (standard library only).

Each form is the `trial` of an `Observations`; its `trial` field says whose it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Growth:
    """A straight line through one quantity over the cycles after the warm-up."""

    quantity: str
    """`host memory`, `device memory`, `open files` or `threads`."""
    slope: float
    """Least-squares slope, in units per cycle: bytes, files, threads."""
    low: float
    """Lower end of the slope's confidence interval of 95%."""
    high: float
    """Upper end of it."""
    bound: float
    """Growth per cycle that is not yet a finding."""
    values: tuple[float, ...]
    """What was measured after each cycle that counts."""


@dataclass(frozen=True, kw_only=True)
class Soak:
    """Many cycles of load, attach, train, save, merge and unload in one process."""

    trial: Literal["soak"] = "soak"
    """Whose form this is."""
    cycles: int
    """Cycles in all."""
    warmup: int
    """First cycles that do not count."""
    growths: tuple[Growth, ...]
    """What was measured; device memory only where there is a device."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One run with one size, in a process that could die."""

    value: int
    """Batch size, or tokens of a sequence."""
    fits: bool
    """Whether the run came to its end."""
    how: str
    """How it ended: `fits`, `out of memory`, or a signal."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The largest size that fits under a memory limit, searched and predicted."""

    trial: Literal["limits"] = "limits"
    """Whose form this is."""
    quantity: str
    """`batch_size` or `max_length`."""
    memory_bytes: int
    """Memory that training may take beyond what the libraries hold."""
    largest: int
    """Largest size that was seen to fit; 0 where not even the smallest does."""
    smallest_refused: int | None
    """Smallest size that was seen not to fit; absent where the ceiling was reached."""
    predicted: int
    """Largest size that `mud-puppy estimate` says fits."""
    ceiling: int
    """Largest size that was tried or predicted at all."""
    factor: float
    """Ratio of found and predicted, either way, that is not yet a finding."""
    monotone: bool
    """Whether nothing fitted that is larger, beyond the search's resolution, than what did not;
    the runs that were repeated after the search included."""
    max_probes: int
    """Runs that the search may take."""
    attempts: tuple[Attempt, ...]
    """Every run, in order."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One artefact, opened by one foreign reader."""

    artefact: str
    """What was read, such as `merged` or `logs`."""
    reader: str
    """Whose code read it, with its version."""
    ending: Literal["agrees", "disagrees", "refused", "not-run"]
    """`refused` is an error or a death of the reader; `not-run` has its reason in `detail`."""
    detail: str = ""
    """What was compared, or why it was not."""
    difference: float | None = None
    """Largest difference of a logit relative to the largest logit, where logits were compared."""
    tolerance: float | None = None
    """What the precision explains of it."""


@dataclass(frozen=True, kw_only=True)
class Interop:
    """Artefacts of one run, opened by other people's code."""

    trial: Literal["interop"] = "interop"
    """Whose form this is."""
    readings: tuple[Reading, ...]
    """One for each artefact and reader."""


@dataclass(frozen=True, kw_only=True)
class DeprecatedCall:
    """A call of ours that a library says it will not take for long."""

    site: str
    """File and line of ours, relative to the project."""
    category: str
    """`DeprecationWarning`, `FutureWarning`, or `log` for what a library only logs."""
    text: str
    """What the library said, shortened."""


@dataclass(frozen=True, kw_only=True)
class SmokeCell:
    """One cell of the smoke set, run with one set of releases."""

    name: str
    """Name of the cell."""
    outcome: str
    """Its outcome, as the runner would have recorded it."""
    message: str
    """Why."""


@dataclass(frozen=True, kw_only=True)
class Versions:
    """The smoke set under one set of releases."""

    trial: Literal["versions"] = "versions"
    """Whose form this is."""
    releases: dict[str, str]
    """Packages and their versions in the environment that ran."""
    cells: tuple[SmokeCell, ...]
    """Every cell of the smoke set."""
    deprecated: tuple[DeprecatedCall, ...]
    """Deprecated calls out of our own files, each once."""
