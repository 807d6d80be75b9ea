"""Ask the doctor about one healthy or damaged checkpoint, and hold its answer against the truth."""

from __future__ import annotations

import time

from harness.doctor import Judging, diagnose
from harness.findings import Diagnosis, Severity, Status, Verdict
from harness.selftest.registry import Damage, Healthy, Patient
from harness.selftest.results import Examination
from harness.selftest.ward import Recovery


def examine_healthy(one: Healthy, ward: Recovery) -> Examination:
    """Ask about a healthy checkpoint; any finding but an expected note is a false alarm."""
    started = time.monotonic()
    diagnosis = _ask(ward.get(one.name))
    spoke = {
        result.name
        for result in diagnosis.findings
        if not (result.severity is Severity.NOTE and result.name in one.notes)
    }
    crashed = _crashed(diagnosis)
    if not (spoke or crashed) and diagnosis.verdict is not Verdict.HEALTHY:
        crashed += (f"verdict {diagnosis.verdict}: {diagnosis.why}",)
    return Examination(
        name=one.name,
        alarms=tuple(sorted(spoke)),
        checked=_checked(diagnosis),
        crashed=crashed,
        verdict=_verdict(diagnosis),
        seconds=time.monotonic() - started,
    )


def examine_damage(one: Damage, ward: Recovery) -> Examination:
    """Break a copy and ask about it: its probe must speak, and no other but those of `also`."""
    started = time.monotonic()
    with ward.copy(one.patient) as patient:
        broken = one.apply(patient) or patient
        diagnosis = _ask(broken)
    spoke = {
        result.name
        for result in diagnosis.findings
        if result.severity is not Severity.NOTE or result.name == one.probe
    }
    return Examination(
        name=one.name,
        patient=one.patient,
        mode=one.mode,
        probe=one.probe,
        missed=() if one.probe in spoke else (one.probe,),
        alarms=tuple(sorted(spoke - {one.probe} - set(one.also))),
        checked=_checked(diagnosis),
        crashed=_crashed(diagnosis),
        verdict=_verdict(diagnosis),
        seconds=time.monotonic() - started,
    )


def _ask(patient: Patient) -> Diagnosis:
    return diagnose(patient.path, Judging(**patient.options))


def _verdict(diagnosis: Diagnosis) -> str:
    return f"{diagnosis.verdict}: {diagnosis.why}"


def _checked(diagnosis: Diagnosis) -> tuple[str, ...]:
    done = (Status.PASSED, Status.FAILED)
    return tuple(sorted({result.name for result in diagnosis.probes if result.status in done}))


def _crashed(diagnosis: Diagnosis) -> tuple[str, ...]:
    """Return what went wrong with the examination itself; a finding must say why and what to do."""
    crashed = [
        f"{result.name}: {result.reason}"
        for result in diagnosis.probes
        if result.status is Status.CRASHED
    ]
    crashed += [
        f"{result.name}: a finding without evidence, cause or remedy"
        for result in diagnosis.findings
        if not (result.evidence and result.cause and result.remedy)
    ]
    return tuple(crashed)
