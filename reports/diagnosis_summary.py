"""What every report on a diagnosis shares: areas, counts, subjects and reasons in words."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.findings import Diagnosis, ProbeResult, Severity, Status
from reports.text import clean

AREAS = {
    "1": "files",
    "8": "config",
    "2": "adapter",
    "3": "weights",
    "4": "lineage",
    "5": "live model",
    "6": "behaviour",
    "9": "training",
    "95": "environment",
    "7": "run",
}
"""Area of a probe by the first digits of its code, in the order in which they are shown."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """A finding, what it explains, and where else there is the same."""

    finding: ProbeResult
    """The finding that stands for the group."""
    consequences: tuple[Group, ...] = ()
    """Findings that it explains, here and elsewhere; groups without consequences of their own."""
    elsewhere: tuple[str, ...] = ()
    """Other subjects with the same finding, of the same severity."""


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
    settled: int
    """Those that failed and were accepted, or known before."""
    crashed: int
    """Those that could not finish."""
    unchecked: int
    """Those that were not checked for want of something."""
    inapplicable: int
    """Those that have nothing to check here."""
    reason: str
    """Why they have not: the most frequent reason."""


def area_of(code: str) -> str:
    """Return the area of a probe; those of other packages have none of ours."""
    if not code.startswith("MPD"):
        return "other"
    first = "95" if "95" <= code[3:5] <= "99" else code[3:4]
    return AREAS.get(first, "other")


def group_findings(diagnosis: Diagnosis) -> tuple[Group, ...]:
    """Return the open findings, consequences under their cause, the same ones of folders once.

    The worst comes first; a cause counts as what it leads to.
    """
    found = [result for result in diagnosis.findings if result.is_open]
    by_place = {(result.code, result.subject): result for result in found}
    roots = {id(result): _find_root(result, by_place) for result in found}
    groups = []
    for same in _alike([result for result in found if roots[id(result)] is result]):
        inside = {id(result) for result in same}
        below = [r for r in found if id(r) not in inside and id(roots[id(r)]) in inside]
        consequences = tuple(_make_group(others) for others in _alike(below))
        groups.append(replace(_make_group(same), consequences=consequences))
    return tuple(sorted(groups, key=_badness))


def _alike(results: Sequence[ProbeResult]) -> list[list[ProbeResult]]:
    """Return results of one code and severity together, in the order in which they begin.

    Subjects of a machine are traps and packages, of which each is a fault of its own.
    """
    grouped: dict[tuple[str, Severity | None, str], list[ProbeResult]] = {}
    for result in results:
        own = result.subject if area_of(result.code) == AREAS["95"] else ""
        grouped.setdefault((result.code, result.severity, own), []).append(result)
    return list(grouped.values())


def _make_group(same: Sequence[ProbeResult]) -> Group:
    return Group(finding=same[0], elsewhere=tuple(other.subject for other in same[1:]))


def _badness(group: Group) -> int:
    order = list(Severity)
    inside = (group.finding, *(other.finding for other in group.consequences))
    return min(order.index(result.severity or Severity.CRITICAL) for result in inside)


def _find_root(result: ProbeResult, by_place: Mapping[tuple[str, str], ProbeResult]) -> ProbeResult:
    seen = {result.code}
    while result.caused_by and result.caused_by not in seen:
        seen.add(result.caused_by)
        # Of a checkpoint, also what the record of the whole run says.
        places = ((result.caused_by, result.subject), (result.caused_by, "."))
        cause = next((by_place[place] for place in places if place in by_place), None)
        seen.add(result.caused_by)
        if cause is None:
            break
        result = cause
    return result


def name_repair(diagnosis: Diagnosis, code: str) -> str:
    """Return the command that writes a repaired copy; empty where there is none for a finding."""
    if code not in diagnosis.facts.get("repairable", ()):
        return ""
    words = [diagnosis.path]
    for facts in diagnosis.facts.get("subjects", [])[:1]:
        if facts.get("base_named_by") == "--base":
            words += ["--base", str(facts["base"])]
    return f"mudpuppy-doctor {' '.join(shlex.quote(clean(w)) for w in words)} --fix --only {code}"


def count_endings(diagnosis: Diagnosis) -> tuple[tuple[int, str], ...]:
    """Return how many results ended how, in words; endings that do not occur are left out."""
    probes = diagnosis.probes
    is_open = [result for result in probes if result.is_open]
    counts = (
        (sum(result.is_sick for result in is_open), "finding", "findings"),
        (sum(not result.is_sick for result in is_open), "note", "notes"),
        (sum(bool(result.accepted) for result in probes), "accepted", "accepted"),
        (sum(r.is_known and not r.accepted for r in probes), "known before", "known before"),
        (len(diagnosis.fixed), "gone", "gone"),
        (sum(r.status is Status.CRASHED for r in probes), "could not finish", "could not finish"),
        (sum(result.is_unchecked for result in probes), "not checked", "not checked"),
        (sum(r.status is Status.PASSED for r in probes), "passed", "passed"),
    )
    return tuple((n, one if n == 1 else many) for n, one, many in counts if n)


def count_areas(probes: Sequence[ProbeResult]) -> tuple[AreaCount, ...]:
    """Return one count per area that occurs, in the order of `AREAS`."""
    names = [*AREAS.values(), "other"]
    grouped = {name: [p for p in probes if area_of(p.code) == name] for name in names}
    return tuple(_count(name, group) for name, group in grouped.items() if group)


def _count(area: str, group: Sequence[ProbeResult]) -> AreaCount:
    findings = sum(result.is_sick for result in group)
    failed = sum(result.is_open for result in group)
    return AreaCount(
        area=area,
        passed=sum(result.status is Status.PASSED for result in group),
        findings=findings,
        notes=failed - findings,
        settled=sum(r.status is Status.FAILED and not r.is_open for r in group),
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


def group_subjects(diagnosis: Diagnosis) -> tuple[tuple[tuple[str, ...], str], ...]:
    """Return the names of the folders that are alike, with what they are."""
    grouped: dict[str, list[str]] = {}
    for facts in diagnosis.facts.get("subjects", []):
        grouped.setdefault(describe_subject(facts), []).append(str(facts["subject"]))
    return tuple((tuple(names), text) for text, names in grouped.items())


def describe_subject(facts: dict[str, Any]) -> str:
    """Return one line about a subject: what it is, how large, made from what."""
    if "type" in facts:
        is_served = facts.get("kind") == "served model"
        kind = "served model" if is_served else "live model of type"
        return f"{kind} {clean(facts['type'])}"
    kind = " ".join(str(word) for word in _kind_words(facts))
    if "tensors" not in facts:
        return clean(kind)
    size = format_bytes(int(facts.get("bytes", 0)))
    text = f"{kind}, {facts['tensors']:,} tensors, {size}"
    if facts.get("dtypes"):
        text += f", {'/'.join(facts['dtypes'])}"
    if facts.get("base"):
        text += f"; base {facts['base']} (from {facts['base_named_by']})"
    return clean(text)


def _kind_words(facts: Mapping[str, Any]) -> list[Any]:
    words = (facts.get(name) for name in ("peft_type", "model_type", "kind"))
    return [word for word in words if word]


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


def list_answers(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    """Return the scores of each model that was asked, with its subject: they are no finding."""
    subjects = diagnosis.facts.get("subjects", [])
    return [(str(one["subject"]), str(one["answers"])) for one in subjects if one.get("answers")]
