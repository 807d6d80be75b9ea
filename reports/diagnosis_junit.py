"""A diagnosis as JUnit XML: a suite for each subject, a case for each probe."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from harness.findings import Diagnosis, ProbeResult, Severity, Status
from reports.diagnosis_summary import area_of
from reports.text import clean, describe_evidence

VERDICT = "verdict"
"""Name of the one case that is no probe: an error when nothing could be determined."""


def write_junit(diagnosis: Diagnosis) -> str:
    """Return the XML; what fails the exit code is a failure, what crashed is an error.

    Notes, and findings below the least severity that fails, pass and say so in their output;
    accepted and known findings are skipped with the reason.
    """
    root = ET.Element("testsuites", name="mudpuppy-doctor", time=f"{diagnosis.seconds:.3f}")
    subjects = list(dict.fromkeys(result.subject for result in diagnosis.probes))
    suites = [_suite(diagnosis, subject) for subject in subjects]
    root.extend([_verdict_suite(diagnosis), *suites])
    for name in ("tests", "failures", "errors", "skipped"):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in root)))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, "unicode") + "\n"


def _verdict_suite(diagnosis: Diagnosis) -> ET.Element:
    case = ET.Element("testcase", classname="doctor", name=VERDICT)
    said = f"{diagnosis.verdict}: {clean(diagnosis.why)}"
    if diagnosis.exit_code == 3:
        ET.SubElement(case, "error", type="unknown", message=said)
    else:
        ET.SubElement(case, "system-out").text = said
    suite = _count("mudpuppy-doctor", [case])
    properties = ET.Element("properties")
    values = {"verdict": str(diagnosis.verdict), "exit-code": str(diagnosis.exit_code)}
    for name, value in values.items():
        ET.SubElement(properties, "property", name=name, value=value)
    suite.insert(0, properties)
    return suite


def _suite(diagnosis: Diagnosis, subject: str) -> ET.Element:
    mine = [result for result in diagnosis.probes if result.subject == subject]
    name = clean(diagnosis.path if subject == "." else f"{diagnosis.path}/{subject}")
    return _count(name, [_case(result, diagnosis.fail_on) for result in mine])


def _count(name: str, cases: list[ET.Element]) -> ET.Element:
    suite = ET.Element("testsuite", name=name, tests=str(len(cases)))
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(sum(case.find(tag) is not None for case in cases)))
    suite.extend(cases)
    return suite


def _case(result: ProbeResult, fail_on: Severity | None) -> ET.Element:
    area = area_of(result.code).replace(" ", "-")
    case = ET.Element("testcase", classname=f"doctor.{area}", name=f"{result.code} {result.name}")
    if result.status is Status.CRASHED:
        ET.SubElement(case, "error", type="crashed", message=clean(result.reason))
    elif result.status is Status.SKIPPED:
        ET.SubElement(case, "skipped", message=clean(result.reason))
    elif result.status is Status.PASSED:
        ET.SubElement(case, "system-out").text = clean(result.message)
    elif fail_on is not None and result.is_sick_at(fail_on):
        kind, message = str(result.severity), clean(result.message)
        ET.SubElement(case, "failure", type=kind, message=message).text = _tell(result)
    elif not result.is_open:
        why = f"accepted: {result.accepted}" if result.accepted else "known from the baseline"
        ET.SubElement(case, "skipped", message=clean(f"{why}; {result.message}"))
    else:
        ET.SubElement(case, "system-out").text = f"{result.severity}: {_tell(result)}"
    return case


def _tell(result: ProbeResult) -> str:
    lines = [clean(result.message)]
    lines += [f"seen: {describe_evidence(piece)}" for piece in result.evidence]
    lines += [f"because: {clean(result.cause)}", f"fix: {clean(result.remedy)}"]
    if result.caused_by:
        lines.append(f"explained by: {result.caused_by}")
    return "\n".join(lines)
