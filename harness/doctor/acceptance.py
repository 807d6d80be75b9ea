"""Findings that a person accepts: with a reason, as narrowly as wanted, and until a day."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from fnmatch import fnmatchcase

from harness.findings import Evidence, ProbeResult, Severity, Status


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """One finding, or several alike, that is not to count."""

    probe: str
    """Code or name of the probe."""
    reason: str
    """Why; shown with the finding."""
    subject: str = "*"
    """Pattern of the folder inside the examined path."""
    tensor: str = "*"
    """Pattern that every tensor of the finding must match."""
    file: str = "*"
    """Pattern that every file of the finding must match."""
    key: str = ""
    """Pattern that every key of the finding must match, such as each function that a pickle calls;
    empty: it covers no critical finding that has keys."""
    until: date | None = None
    """Last day on which it holds."""

    @property
    def words(self) -> str:
        """The acceptance as a person wrote it, for messages."""
        places = (("subject", self.subject), ("tensor", self.tensor), ("file", self.file))
        shown = [(name, text) for name, text in places if text != "*"]
        shown += [("key", self.key)] if self.key else []
        return " ".join([self.probe, *(f"{name} {text}" for name, text in shown)])

    def covers(self, result: ProbeResult) -> bool:
        """Whether it is this finding, and all of it: one tensor elsewhere is another finding."""
        return self.is_about(result) and self._covers_keys(result)

    def is_about(self, result: ProbeResult) -> bool:
        """Whether it is of this probe and at these places, whatever the keys."""
        return (
            result.status is Status.FAILED
            and self.probe.casefold() in (result.code.casefold(), result.name)
            and fnmatchcase(result.subject, self.subject)
            and all(self._covers_place(piece) for piece in result.evidence)
        )

    def _covers_keys(self, result: ProbeResult) -> bool:
        keys = [key for piece in result.evidence for key in piece.keys]
        if not self.key:
            return not keys or result.severity is not Severity.CRITICAL
        return all(fnmatchcase(key, self.key) for key in keys)

    def _covers_place(self, piece: Evidence) -> bool:
        return fnmatchcase(piece.tensor or "", self.tensor) and fnmatchcase(
            piece.file or "", self.file
        )


def accept(
    results: Sequence[ProbeResult], acceptances: Sequence[Acceptance], today: date
) -> tuple[tuple[ProbeResult, ...], tuple[str, ...]]:
    """Return the results with the reasons of accepted findings, and what is odd about them.

    An acceptance that is over, or that covers nothing, is told: the one hides no finding any more,
    the other never did, or what it covered is mended.
    """
    remarks: list[str] = []
    for one in acceptances:
        covered = [result for result in results if one.covers(result)]
        about = [result for result in results if one.is_about(result)]
        if not covered and about:
            remarks.append(_tell_keys(one, about[0]))
        elif not covered:
            remarks.append(f"the acceptance of {one.words} matches no finding and can go")
        elif one.until is not None and one.until < today:
            remarks.append(f"the acceptance of {one.words} ended on {one.until.isoformat()}")
        else:
            results = [
                replace(r, accepted=r.accepted or one.reason) if one.covers(r) else r
                for r in results
            ]
    return tuple(results), tuple(remarks)


def _tell_keys(one: Acceptance, result: ProbeResult) -> str:
    """Return why a finding is not covered, and what would cover it."""
    keys = [key for piece in result.evidence for key in piece.keys]
    return f"the acceptance of {one.words} must name what it covers, such as key = '{keys[0]}'"
