"""What every report on a diagnosis shares: areas, counts, subjects and reasons in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from harness.findings import ProbeResult, Status
from reports.text import clean

AREAS = {
    "1": "files",
    "8": "config",
    "2": "adapter",
    "3": "weights",
    "4": "lineage",
    "5": "live model",
    "6": "behaviour",
    "7": "run",
}
"""Area of a probe by the first digit of its code, in the order in which they are shown."""


@dataclass(frozen=True, kw_only=True)
class AreaCount:
    """The endings of all probes of one area."""

    area: str
    """Its name."""
    passed: int
    """Probes, times subjects, that passed."""
    findings: int
    """Those that failed, notes excluded."""
    notes: int
    """Those that failed with a note."""
    crashed: int
    """Those that could not finish."""
    unchecked: int
    """Those that were not checked for want of something."""
    inapplicable: int
    """Those that have nothing to check here."""
    reason: str
    """Why they have not: the most frequent reason."""


def area_of(code: str) -> str:
    """Return the area of a probe."""
    return AREAS.get(code[3:4], "other")


def count_areas(probes: Sequence[ProbeResult]) -> tuple[AreaCount, ...]:
    """Return one count per area that occurs, in the order of `AREAS`."""
    names = [*AREAS.values(), "other"]
    grouped = {name: [p for p in probes if area_of(p.code) == name] for name in names}
    return tuple(_count(name, group) for name, group in grouped.items() if group)


def _count(area: str, group: Sequence[ProbeResult]) -> AreaCount:
    findings = sum(result.is_sick for result in group)
    failed = sum(result.status is Status.FAILED for result in group)
    return AreaCount(
        area=area,
        passed=sum(result.status is Status.PASSED for result in group),
        findings=findings,
        notes=failed - findings,
        crashed=sum(result.status is Status.CRASHED for result in group),
        unchecked=sum(result.is_unchecked for result in group),
        inapplicable=sum(not result.applies for result in group),
        reason=_commonest(r.reason for r in group if not r.applies),
    )


def _commonest(reasons: Iterable[str]) -> str:
    counts: dict[str, int] = {}
    for reason in reasons:
        counts[reason] = counts.get(reason, 0) + 1
    return max(counts, key=lambda reason: counts[reason]) if counts else ""


def describe_subject(facts: dict[str, Any]) -> str:
    """Return one line about a subject: what it is, how large, made from what."""
    if "type" in facts:
        return f"live model of type {clean(facts['type'])}"
    kind = " ".join(
        word
        for word in (facts.get("peft_type"), facts.get("model_type"), facts.get("kind"))
        if word
    )
    size = format_bytes(int(facts.get("bytes", 0)))
    tensors = facts.get("tensors", 0)
    text = f"{kind}, {tensors:,} tensors, {size}"
    if facts.get("dtypes"):
        text += f", {'/'.join(facts['dtypes'])}"
    if facts.get("base"):
        text += f"; base {facts['base']} (from {facts['base_named_by']})"
    return clean(text)


def format_bytes(count: int) -> str:
    """Return a size as people write it."""
    for unit, step in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= step:
            return f"{count / step:.1f} {unit}"
    return f"{count} bytes"


def group_reasons(results: Iterable[ProbeResult]) -> dict[str, list[ProbeResult]]:
    """Return results grouped by the reason that they give."""
    grouped: dict[str, list[ProbeResult]] = {}
    for result in results:
        grouped.setdefault(result.reason, []).append(result)
    return grouped
