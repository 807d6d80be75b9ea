"""An earlier diagnosis to compare with: which findings are new, and which are gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.evidence.files.jsonfile import UnreadableJson, parse_object
from harness.findings import DIAGNOSIS_SCHEMA_VERSION, Fixed, ProbeResult, Severity, Status
from mudpuppy.errors import UsageError, clip

LIMIT_BYTES = 256_000_000
"""Largest diagnosis that is read; one probe on one subject takes about a kilobyte."""
_HINT = "make it with: mudpuppy-doctor PATH --output earlier.json"


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """The findings of an earlier diagnosis."""

    source: str
    """Where it was read from."""
    findings: dict[str, Fixed]
    """Its findings by fingerprint."""
    places: dict[tuple[str, str], set[str]]
    """Hashes of the files and tensors that were named for each probe and subject."""
    severities: dict[tuple[str, str], Severity]
    """How bad the finding of each probe and subject was."""

    def compare(
        self, results: Sequence[ProbeResult]
    ) -> tuple[tuple[ProbeResult, ...], tuple[Fixed, ...]]:
        """Return the results, known findings marked, and the earlier findings that are gone.

        A finding at some of the same places is known, one at other places, or a worse one, is new.
        Gone is only
        what was looked for again and found in order, or has nothing to look at any more: a probe
        that could not be checked this time mends nothing.
        """
        marked = tuple(
            replace(result, is_known=True) if self._knows(result) else result for result in results
        )
        fine = {(r.code, r.subject) for r in marked if r.status is Status.PASSED or not r.applies}
        gone = [one for one in self.findings.values() if (one.code, one.subject) in fine]
        return marked, tuple(gone)

    def _knows(self, result: ProbeResult) -> bool:
        if result.status is not Status.FAILED:
            return False
        place = result.code, result.subject
        earlier = self.severities.get(place, Severity.NOTE)
        if not earlier.is_at_least(result.severity or Severity.CRITICAL):
            return False
        places = set(result.places)
        known = self.places.get(place, set())
        return result.fingerprint in self.findings or (bool(places) and places <= known)


def read_baseline(path: str | Path) -> Baseline:
    """Read a diagnosis that `mudpuppy-doctor --format json` wrote.

    Raises:
        UsageError: it cannot be read, or is no diagnosis of this version.
    """
    try:
        with Path(path).open("rb") as file:
            raw = file.read(LIMIT_BYTES + 1)
        if len(raw) > LIMIT_BYTES:
            raise UnreadableJson(f"larger than {LIMIT_BYTES:,} bytes")
        value, _ = parse_object(raw)
    except OSError as problem:
        raise UsageError(f"--baseline {path}: {problem.strerror}", hint=_HINT) from None
    except (UnreadableJson, ValueError) as problem:
        raise UsageError(f"--baseline {path} is no JSON report: {problem}", hint=_HINT) from None
    version = value.get("schema_version")
    probes = value.get("probes")
    if version != DIAGNOSIS_SCHEMA_VERSION or not isinstance(probes, list):
        found = (
            f"schema_version {clip(str(version))}" if "schema_version" in value else "no version"
        )
        raise UsageError(
            f"--baseline {path} is no diagnosis of version {DIAGNOSIS_SCHEMA_VERSION}: {found}",
            hint=_HINT,
        )
    findings: dict[str, Fixed] = {}
    places: dict[tuple[str, str], set[str]] = {}
    severities: dict[tuple[str, str], Severity] = {}
    for one in filter(_is_finding, probes):
        words = {name: str(one.get(name, "")) for name in ("code", "name", "subject", "message")}
        findings[str(one["fingerprint"])] = Fixed(**words)
        place = words["code"], words["subject"]
        places[place] = _read_places(one.get("places"))
        severities[place] = _read_severity(one.get("severity"))
    return Baseline(source=str(path), findings=findings, places=places, severities=severities)


def _is_finding(value: Any) -> bool:
    return isinstance(value, dict) and value.get("status") == "failed" and "fingerprint" in value


def _read_severity(text: Any) -> Severity:
    """Return how bad a finding was; one that does not say hides no worse one."""
    return Severity(text) if text in list(Severity) else Severity.NOTE


def _read_places(places: Any) -> set[str]:
    return (
        {place for place in places if isinstance(place, str)} if isinstance(places, list) else set()
    )
