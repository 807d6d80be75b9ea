"""The audit of rejections as lines: which rejected combinations would have worked, by force."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Audit = Sequence[Mapping[str, Any]]


def summarise_audit(audit: Audit) -> str:
    """Return the audit as a sentence."""
    forced = [one for one in audit if one["outcome"] != "not-run"]
    endings = Counter(str(one["outcome"]) for one in forced if not one["works"])
    others = ", ".join(f"{count} {word}" for word, count in sorted(endings.items()))
    return (
        f"{sum(one['works'] for one in forced)} of {len(forced)} rejected combinations would have "
        f"worked by force" + (f" (the others: {others})" if others else "")
    )


def list_working(audit: Audit) -> list[str]:
    """Return a line for each rejected combination that trained and left a healthy artefact."""
    return [f"{one['name']} ({' '.join(one['codes'])})" for one in audit if one["works"]]
