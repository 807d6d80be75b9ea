"""Ask the doctor about one healthy or damaged checkpoint, and hold its answer against the truth."""

from __future__ import annotations

from dataclasses import dataclass

from harness.doctor import diagnose
from harness.findings import Diagnosis, Severity, Status
from harness.selftest.registry import Damage, Healthy, Patient
from harness.selftest.ward import Recovery


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What the doctor said, and what it should have said."""

    name: str
    """The healthy checkpoint or the damage."""
    missed: tuple[str, ...] = ()
    """Probes that should have spoken and did not."""
    alarms: tuple[str, ...] = ()
    """Probes that spoke and should not have."""
    crashed: tuple[str, ...] = ()
    """Probes that crashed, with the reason."""
    verdict: str = ""
    """The verdict, in a sentence."""

    @property
    def is_right(self) -> bool:
        """Whether the doctor said what is true, and nothing else."""
        return not (self.missed or self.alarms or self.crashed)


def examine_healthy(one: Healthy, ward: Recovery) -> Examination:
    """Ask about a healthy checkpoint; any finding but an expected note is a false alarm."""
    diagnosis = _ask(ward.get(one.name))
    spoke = {
        result.name
        for result in diagnosis.findings
        if not (result.severity is Severity.NOTE and result.name in one.notes)
    }
    return _compare(one.name, diagnosis, set(), spoke, set())


def examine_damage(one: Damage, ward: Recovery) -> Examination:
    """Break a copy and ask about it: its probe must speak, and no other but those of `also`."""
    with ward.copy(one.patient) as patient:
        broken = one.apply(patient) or patient
        diagnosis = _ask(broken)
    spoke = {result.name for result in diagnosis.findings if result.severity is not Severity.NOTE}
    if any(result.name == one.probe for result in diagnosis.findings):
        spoke.add(one.probe)  # also when it says so in a note
    return _compare(one.name, diagnosis, {one.probe}, spoke, set(one.also))


def _ask(patient: Patient) -> Diagnosis:
    return diagnose(patient.path, **patient.options)


def _compare(
    name: str, diagnosis: Diagnosis, wanted: set[str], spoke: set[str], allowed: set[str]
) -> Examination:
    crashed = [
        f"{result.name}: {result.reason}"
        for result in diagnosis.probes
        if result.status is Status.CRASHED
    ]
    return Examination(
        name=name,
        missed=tuple(sorted(wanted - spoke)),
        alarms=tuple(sorted(spoke - wanted - allowed)),
        crashed=tuple(crashed),
        verdict=f"{diagnosis.verdict}: {diagnosis.why}",
    )
