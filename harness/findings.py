"""What a probe says: evidence, findings, results and the verdict (standard library only)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

DIAGNOSIS_SCHEMA_VERSION = 2
"""2: severities are critical, high, medium and note; 1 had error, warning and note."""


def agree(number: int, one: str, many: str) -> str:
    """Return a number with the words that agree with it: `1 shard is`, `3 shards are`."""
    return f"{number:,} {one if number == 1 else many}"


class Severity(StrEnum):
    """How bad a finding is, worst first; C, H and M of the catalogue of failure modes."""

    CRITICAL = "critical"
    """The output is useless or silently wrong."""
    HIGH = "high"
    """Clearly degraded, lost work, or wrong for some readers."""
    MEDIUM = "medium"
    """A nuisance or a risk."""
    NOTE = "note"
    """Worth knowing; never changes the verdict."""

    def is_at_least(self, other: Severity) -> bool:
        """Whether this is as bad as `other`, or worse."""
        order = list(Severity)
        return order.index(self) <= order.index(other)


class Status(StrEnum):
    """The four endings that every probe and every cell has (design, rule 4)."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    CRASHED = "crashed"


class Verdict(StrEnum):
    """One word about a checkpoint."""

    HEALTHY = "healthy"
    SICK = "sick"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One thing that was seen."""

    what: str
    """What was measured, as a short noun phrase."""
    file: str | None = None
    """File it was seen in, relative to the checkpoint."""
    tensor: str | None = None
    """Tensor or module it is about."""
    found: Any = None
    """The value seen: a number, a text, or a short list (JSON types only, finite)."""
    expected: Any = None
    """The healthy value or range, when there is one."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A failure that a probe found."""

    message: str
    """What is wrong, in one sentence with the decisive number."""
    evidence: tuple[Evidence, ...]
    """At least one piece; a probe shows the worst few and says how many there are."""
    cause: str
    """The likely cause."""
    remedy: str
    """What to type or change."""
    severity: Severity | None = None
    """Overrides the severity of the probe."""


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """The ending of one probe on one checkpoint."""

    code: str
    """Stable code, such as `MPD203`."""
    name: str
    """Name of the fault, such as `adapter-never-trained`."""
    modes: tuple[str, ...]
    """Failure modes it covers, such as `FM08`."""
    status: Status
    """One of the four endings."""
    severity: Severity | None = None
    """Severity of the finding; absent unless the probe failed."""
    message: str = ""
    """What was found, or what was checked."""
    evidence: tuple[Evidence, ...] = ()
    """What the message rests on."""
    cause: str = ""
    """Likely cause of the finding."""
    remedy: str = ""
    """What to type to mend it."""
    reason: str = ""
    """Why the probe was skipped or how it crashed."""
    applies: bool = True
    """False for a skipped probe that has nothing to check here; true for one that was not checked
    for want of something, such as the base."""
    subject: str = "."
    """Which folder inside the examined path this is about."""

    @property
    def is_sick(self) -> bool:
        """Whether this result alone makes the checkpoint sick: anything but a note."""
        return self.is_sick_at(Severity.MEDIUM)

    def is_sick_at(self, least: Severity) -> bool:
        """Whether this result is a finding of severity `least` or worse."""
        failed = self.status is Status.FAILED
        return failed and (self.severity or Severity.CRITICAL).is_at_least(least)

    @property
    def is_unchecked(self) -> bool:
        """Whether something that could be wrong here was not checked."""
        return self.status is Status.SKIPPED and self.applies


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Everything the doctor says about one path."""

    path: str
    """The path as it was given."""
    verdict: Verdict
    """healthy, sick or unknown."""
    why: str
    """The verdict in one sentence."""
    probes: tuple[ProbeResult, ...]
    """One result per selected probe and subject, in code order."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What was examined: kind, tensors, bytes, base, adapter, versions."""
    schema_version: int = DIAGNOSIS_SCHEMA_VERSION
    """Version of the JSON form."""

    @property
    def findings(self) -> tuple[ProbeResult, ...]:
        """The results that failed, worst first."""
        order = list(Severity)
        failed = [result for result in self.probes if result.status is Status.FAILED]
        return tuple(sorted(failed, key=lambda r: order.index(r.severity or Severity.CRITICAL)))

    @property
    def exit_code(self) -> int:
        """0 healthy, 1 findings, 3 could not be determined (design, rule 4)."""
        return {Verdict.HEALTHY: 0, Verdict.SICK: 1, Verdict.UNKNOWN: 3}[self.verdict]

    def to_json(self) -> dict[str, Any]:
        """Return the diagnosis as plain JSON types."""
        return asdict(self)
