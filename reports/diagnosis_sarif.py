"""A diagnosis as SARIF 2.1.0, for code scanning: every rule, every ending, nothing dropped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from harness.findings import Diagnosis, Evidence, ProbeResult, Rule, Severity, Status
from reports.text import clean, describe_evidence

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
BASE = "CHECKPOINT"
"""What the places of files are relative to: the path that was examined."""
FINGERPRINT = "mudpuppyDoctor/v1"
LEVELS = {
    Severity.CRITICAL: "error",
    Severity.HIGH: "error",
    Severity.MEDIUM: "warning",
    Severity.NOTE: "note",
}
PLACES = 10
"""Places that one result names."""


def write_sarif(diagnosis: Diagnosis, rules: Sequence[Rule]) -> str:
    """Return the log; `rules` are those of every probe there is, run or not.

    Findings are `fail` with a level, passed probes `pass`, what does not apply `notApplicable`,
    what was not checked `open`; crashed probes are notifications of the run. Accepted findings
    are kept and suppressed with the reason.
    """
    index = {rule.code: number for number, rule in enumerate(rules)}
    run: dict[str, Any] = {
        "tool": {
            "driver": {
                "name": "mudpuppy-doctor",
                "rules": [_rule(rule) for rule in rules],
            }
        },
        "invocations": [_invocation(diagnosis)],
        "originalUriBaseIds": {BASE: {"description": {"text": clean(diagnosis.path)}}},
        "columnKind": "unicodeCodePoints",
        "results": [
            _result(one, index, is_compared=_is_compared(diagnosis))
            for one in diagnosis.probes
            if one.status is not Status.CRASHED
        ],
        "properties": {"verdict": str(diagnosis.verdict), "why": clean(diagnosis.why)},
    }
    run["results"] += [
        {
            "ruleId": one.code,
            "kind": "fail",
            "level": "none",
            "message": {"text": clean(one.message) or one.name},
            "baselineState": "absent",
        }
        for one in diagnosis.fixed
    ]
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=2, allow_nan=False) + "\n"


def _is_compared(diagnosis: Diagnosis) -> bool:
    return bool(diagnosis.fixed) or any(result.is_known for result in diagnosis.probes)


def _rule(rule: Rule) -> dict[str, Any]:
    said = rule.paragraphs
    markdown = "\n\n".join(f"**{heading}.** {text}" for heading, text in said.items())
    plain = "\n\n".join(f"{heading}: {text}" for heading, text in said.items())
    return {
        "id": rule.code,
        "name": "".join(word.capitalize() for word in rule.name.split("-")),
        "shortDescription": {"text": rule.caption or rule.name},
        "fullDescription": {"text": said.get("Why it is bad", rule.caption) or rule.name},
        "help": {"text": plain or rule.caption or rule.name, "markdown": markdown or rule.caption},
        "defaultConfiguration": {"level": LEVELS[rule.severity]},
        "properties": {"tags": [rule.name, *rule.modes], "severity": str(rule.severity)},
    }


def _invocation(diagnosis: Diagnosis) -> dict[str, Any]:
    crashed = [result for result in diagnosis.probes if result.status is Status.CRASHED]
    return {
        "executionSuccessful": diagnosis.exit_code != 3,
        "exitCode": diagnosis.exit_code,
        "toolExecutionNotifications": [
            {
                "level": "error",
                "message": {"text": clean(f"{result.name} could not finish: {result.reason}")},
                "associatedRule": {"id": result.code},
            }
            for result in crashed
        ],
        "toolConfigurationNotifications": [
            {"level": "note", "message": {"text": clean(remark)}} for remark in diagnosis.remarks
        ],
    }


def _result(one: ProbeResult, index: dict[str, int], *, is_compared: bool) -> dict[str, Any]:
    kind, level = _kind(one)
    value: dict[str, Any] = {
        "ruleId": one.code,
        "kind": kind,
        "level": level,
        "message": {"text": _tell(one)},
        "locations": _locations(one),
        "properties": {"subject": clean(one.subject)},
    }
    if one.code in index:
        value["ruleIndex"] = index[one.code]
    if one.status is not Status.FAILED:
        return value
    value["partialFingerprints"] = {FINGERPRINT: one.fingerprint}
    value["properties"] |= {"severity": str(one.severity), "tags": list(one.modes)}
    if one.caused_by:
        value["properties"]["causedBy"] = one.caused_by
    if one.accepted:
        value["suppressions"] = [{"kind": "external", "justification": clean(one.accepted)}]
    if is_compared:
        value["baselineState"] = "unchanged" if one.is_known else "new"
    return value


def _kind(one: ProbeResult) -> tuple[str, str]:
    if one.status is Status.FAILED:
        return "fail", LEVELS[one.severity or Severity.CRITICAL]
    if one.status is Status.PASSED:
        return "pass", "none"
    return ("open" if one.applies else "notApplicable"), "none"


def _tell(one: ProbeResult) -> str:
    if one.status is not Status.FAILED:
        return clean(one.message or one.reason or one.name)
    seen = "; ".join(describe_evidence(piece) for piece in one.evidence)
    parts = [one.message, f"Seen: {seen}", f"Because: {one.cause}", f"Fix: {one.remedy}"]
    return "\n".join(clean(part) for part in parts)


def _locations(one: ProbeResult) -> list[dict[str, Any]]:
    """Return where a result is: the files and tensors of its evidence, or the folder itself."""
    places = [piece for piece in one.evidence if piece.file or piece.tensor][:PLACES]
    return [_location(one.subject, piece) for piece in places] or [
        _location(one.subject, Evidence(what="the checkpoint"))
    ]


def _location(subject: str, piece: Evidence) -> dict[str, Any]:
    path = PurePosixPath(subject) / (piece.file or "")
    uri = quote(str(path), safe="/", errors="surrogatepass")
    value: dict[str, Any] = {
        "physicalLocation": {"artifactLocation": {"uri": uri, "uriBaseId": BASE}}
    }
    if piece.tensor:
        value["logicalLocations"] = [{"fullyQualifiedName": clean(piece.tensor), "kind": "member"}]
    return value
