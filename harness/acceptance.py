"""Findings that a person accepts: with a reason, as narrowly as wanted, and until a day."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from fnmatch import fnmatchcase

from harness.findings import Evidence, ProbeResult, Status


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
    until: date | None = None
    """Last day on which it holds."""

    @property
    def words(self) -> str:
        """The acceptance as a person wrote it, for messages."""
        places = (("subject", self.subject), ("tensor", self.tensor), ("file", self.file))
        return " ".join([self.probe, *(f"{name} {text}" for name, text in places if text != "*")])

    def covers(self, result: ProbeResult) -> bool:
        """Whether it is this finding, and all of it: one tensor elsewhere is another finding."""
        return (
            result.status is Status.FAILED
            and self.probe.casefold() in (result.code.casefold(), result.name)
            and fnmatchcase(result.subject, self.subject)
            and all(self._covers_place(piece) for piece in result.evidence)
        )

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
        if not covered:
            remarks.append(f"the acceptance of {one.words} matches no finding and can go")
        elif one.until is not None and one.until < today:
            remarks.append(f"the acceptance of {one.words} ended on {one.until.isoformat()}")
        else:
            results = [
                replace(r, accepted=r.accepted or one.reason) if one.covers(r) else r
                for r in results
            ]
    return tuple(results), tuple(remarks)
