"""What a probe says: evidence, findings, results and the verdict (standard library only)."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

DIAGNOSIS_SCHEMA_VERSION = 3
"""3: findings have fingerprints and causes, may be accepted or known, and the least severity that
fails is told; 2: severities are critical, high, medium and note; 1 had error, warning and note."""
HEADINGS = ("What it does", "Why it is bad", "Example", "What to do")
"""The paragraphs of a probe's documentation."""


MOST_PLACES = 10_000
"""Places of one finding that are kept; beyond, only the same finding is known again."""


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
    NO_WORSE = "no worse"
    """Compared with an earlier diagnosis: sick, and nothing of it is new."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What can be told about a probe before it has looked at anything."""

    code: str
    """Stable code, `MPD` and three digits; probes of other packages have other letters."""
    name: str
    """The fault, as the file is named, with dashes."""
    modes: tuple[str, ...]
    """Failure modes of the catalogue that it covers, `FM01` to `FM66`."""
    severity: Severity
    """Severity of its finding unless the finding says otherwise."""
    documentation: str
    """The module docstring, printed by `mudpuppy-doctor explain CODE`."""

    @property
    def caption(self) -> str:
        """The fault in one sentence."""
        return self.documentation.partition("\n")[0]

    @property
    def paragraphs(self) -> dict[str, str]:
        """The text under each of `HEADINGS` that the documentation has, on one line each."""
        parts = re.split(rf"(?m)^({'|'.join(HEADINGS)}):", self.documentation)
        return {
            heading: " ".join(text.split())
            for heading, text in zip(parts[1::2], parts[2::2], strict=True)
        }


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
    keys: tuple[str, ...] = ()
    """What makes this another finding at the same place, such as the functions that a pickle
    calls: a baseline compares them, and an acceptance of something critical must name them."""


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
    fingerprint: str = ""
    """Of a finding: the same for the same code, subject, files, tensors and keys, whatever the
    numbers; 16 hexadecimal digits."""
    places: tuple[str, ...] = ()
    """Of a finding: eight hexadecimal digits for each file, tensor and key that it named, sorted,
    also of those that are not shown; a later diagnosis tells by them what is new."""
    caused_by: str = ""
    """Code of the finding that explains this one, on the same subject or, from the record of a run,
    on the whole run; empty for one that stands alone."""
    accepted: str = ""
    """Why a person accepts this finding; empty for one that nobody has accepted."""
    is_known: bool = False
    """Whether the earlier diagnosis that this one is compared with has the same finding."""

    @property
    def is_open(self) -> bool:
        """Whether this is a finding that is neither accepted nor known from before."""
        return self.status is Status.FAILED and not self.accepted and not self.is_known

    @property
    def is_sick(self) -> bool:
        """Whether this result alone makes the checkpoint sick: an open finding, no note."""
        return self.is_sick_at(Severity.MEDIUM)

    def is_sick_at(self, least: Severity) -> bool:
        """Whether this result is an open finding of severity `least` or worse."""
        return self.is_open and (self.severity or Severity.CRITICAL).is_at_least(least)

    @property
    def is_unchecked(self) -> bool:
        """Whether something that could be wrong here was not checked."""
        return self.status is Status.SKIPPED and self.applies


def hash_places(evidence: tuple[Evidence, ...]) -> tuple[str, ...]:
    """Return a short hash of every place that the pieces of evidence name, for each of its keys."""
    named = _name_places(evidence) - {"\0"}
    hashed = (hashlib.sha256(place.encode("utf-8", "surrogatepass")) for place in named)
    return tuple(sorted(one.hexdigest()[:8] for one in hashed))[:MOST_PLACES]


def fingerprint(code: str, subject: str, evidence: tuple[Evidence, ...]) -> str:
    """Return what tells a finding from others; numbers do not, places and their keys do."""
    text = "\n".join((code, subject, *sorted(_name_places(evidence))))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _name_places(evidence: tuple[Evidence, ...]) -> set[str]:
    named = set()
    for piece in evidence:
        place = f"{piece.file or ''}\0{piece.tensor or ''}"
        named |= {f"{place}\0{key}" for key in piece.keys} or {place}
    return named


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """A finding of an earlier diagnosis that is no longer there."""

    code: str
    """Code of the probe."""
    name: str
    """Name of the fault."""
    subject: str
    """Folder inside the examined path."""
    message: str
    """What was wrong."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Everything the doctor says about one path."""

    schema_version: int = DIAGNOSIS_SCHEMA_VERSION
    """Version of the JSON form."""
    path: str
    """The path as it was given."""
    verdict: Verdict
    """healthy, sick or unknown; no worse, where it is compared with an earlier diagnosis."""
    why: str
    """The verdict in one sentence."""
    probes: tuple[ProbeResult, ...]
    """One result per selected probe and subject, in code order."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What was examined: kind, tensors, bytes, base, adapter, versions."""
    fail_on: Severity | None = Severity.MEDIUM
    """Least severity of a finding that fails, by the exit code; the verdict does not follow it.
    None: no finding fails."""
    fixed: tuple[Fixed, ...] = ()
    """Findings of the earlier diagnosis that are gone."""
    remarks: tuple[str, ...] = ()
    """What is odd about the settings: acceptances that match nothing or are over."""
    seconds: float = field(default=0.0, compare=False)
    """How long it took; not in the JSON form, which is the same for the same checkpoint."""

    @property
    def findings(self) -> tuple[ProbeResult, ...]:
        """The results that failed, worst first."""
        order = list(Severity)
        failed = [result for result in self.probes if result.status is Status.FAILED]
        return tuple(sorted(failed, key=lambda r: order.index(r.severity or Severity.CRITICAL)))

    @property
    def exit_code(self) -> int:
        """0 nothing fails, 1 findings do, 3 could not be determined (design, rule 4)."""
        least = self.fail_on
        if least is not None and any(result.is_sick_at(least) for result in self.probes):
            return 1
        unknown = self.verdict is Verdict.UNKNOWN or bool(self.facts.get("unread"))
        return 3 if unknown or any(r.status is Status.CRASHED for r in self.probes) else 0

    def to_json(self) -> dict[str, Any]:
        """Return the diagnosis as plain JSON types."""
        value = asdict(self)
        del value["seconds"]
        return value
