"""What the stages of an adapter's life left behind: plain, frozen facts (standard library only).

Written by `harness.trials.lifecycle` as the `trial` of an `Observations`, judged by MPD735 to
MPD739.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["adapter", "merged", "base"]
"""What a stage leaves: an adapter, a model it was merged into, or the base as it was."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage: what it left, measured in a process of its own."""

    name: str
    """Round and stage, such as `2 dpo merged`."""
    step: str
    """The stage without its round: stages of one step are compared over the rounds."""
    kind: Kind
    """What it left."""
    planted: bool = False
    """Whether it was damaged on purpose: the doctor must find something."""
    bytes: int
    """Bytes of its weights files."""
    tensors: int
    """Tensors in them."""
    adapters: int
    """Adapters in them, inside or beside each other."""
    peak_rss_bytes: int | None = None
    """Largest resident memory of the process that made it."""
    verdict: str
    """The doctor's word."""
    findings: tuple[str, ...] = ()
    """Codes of what the doctor found."""
    k_low: float | None = None
    """Smallest share of the adapter's change that arrived in a module; of a merge alone."""
    k_high: float | None = None
    """Largest one."""
    judged: int = 0
    """Modules for which the share can be told from rounding."""
    foreign: int = 0
    """Tensors that are not, bit for bit, those that they have to be."""


@dataclass(frozen=True, kw_only=True)
class Lifecycle:
    """A story of several stages."""

    trial: Literal["lifecycle"] = "lifecycle"
    """Whose form this is."""
    story: str
    """What was done."""
    rounds: int
    """Rounds of it."""
    stages: tuple[Stage, ...]
    """Every stage, in order."""
    live_model: dict[str, Any] | None = None
    """What was seen of a model in memory, as `harness.facts.behaviour.LiveModel` has it."""
