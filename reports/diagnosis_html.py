"""A diagnosis as one page of HTML that needs nothing else: no network, no fonts, no other file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.findings import Diagnosis, Evidence, ProbeResult, Rule, Severity, Status
from reports.diagnosis_summary import (
    area_of,
    count_areas,
    count_endings,
    group_findings,
    group_reasons,
    group_subjects,
    list_answers,
    name_repair,
)
from reports.text import clean, format_value

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parent / "templates"
MARKS = {
    Status.PASSED: "passed",
    Status.FAILED: "finding",
    Status.SKIPPED: "not checked",
    Status.CRASHED: "could not finish",
}


def write_html(diagnosis: Diagnosis, rules: Sequence[Rule]) -> str:
    """Return the page; everything that comes from the checkpoint is escaped.

    The page's policy forbids all but its own style and script, by their hashes: were a name to
    escape the escaping, a browser would still not run it.
    """
    style, script = _read("diagnosis.css"), _read("diagnosis.js")
    return _template().render(
        diagnosis=diagnosis,
        policy="; ".join(
            (
                "default-src 'none'",
                f"style-src '{_hash(style)}'",
                f"script-src '{_hash(script)}'",
                "base-uri 'none'",
                "form-action 'none'",
            )
        ),
        style=style,
        script=script,
        groups=group_findings(diagnosis),
        rules={rule.code: rule for rule in rules},
        **_lists(diagnosis),
    )


@cache
def _template() -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["clean"] = lambda value: clean(str(value))
    return environment.get_template("diagnosis.html.jinja")


def _lists(diagnosis: Diagnosis) -> dict[str, Any]:
    probes = diagnosis.probes
    return {
        "subjects": group_subjects(diagnosis),
        "has_folders": len(diagnosis.facts.get("subjects", [])) > 1,
        "counts": count_endings(diagnosis),
        "areas": count_areas(probes),
        "answers": list_answers(diagnosis),
        "accepted": [one for one in diagnosis.findings if one.accepted],
        "known": [one for one in diagnosis.findings if one.is_known and not one.accepted],
        "crashed": [one for one in probes if one.status is Status.CRASHED],
        "unchecked": group_reasons(one for one in probes if one.is_unchecked),
        "rows": [_row(one) for one in probes],
        "mend": lambda one: name_repair(diagnosis, one.code),
        "severity_of": lambda one: one.severity or Severity.CRITICAL,
        "found": _found,
        "expected": lambda piece: "" if piece.expected is None else format_value(piece.expected),
    }


def _row(one: ProbeResult) -> dict[str, str]:
    """Return one line of the table of all probes."""
    ending = MARKS[one.status] if one.applies else "does not apply"
    if one.status is Status.FAILED:
        ending = "accepted" if one.accepted else "known" if one.is_known else str(one.severity)
    return {
        "code": one.code,
        "name": one.name,
        "area": area_of(one.code),
        "subject": one.subject,
        "ending": ending,
        "said": one.message or one.reason,
    }


def _found(piece: Evidence) -> str:
    return "" if piece.found is None else format_value(piece.found)


def _read(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
