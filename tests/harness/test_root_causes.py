"""Which finding explains which: the table fits the registry, and nothing explains itself."""

from __future__ import annotations

from dataclasses import replace

from harness.doctor import conclude
from harness.findings import ProbeResult, Severity, Status, Verdict
from harness.registry import load_probes
from harness.root_causes import EXPLAINS, link_causes

CODES = {one.name: one.code for one in load_probes()}


def failed(name: str, subject: str = ".", severity: Severity = Severity.CRITICAL) -> ProbeResult:
    return ProbeResult(
        code=CODES[name],
        name=name,
        modes=(),
        status=Status.FAILED,
        severity=severity,
        subject=subject,
    )


def causes(*results: ProbeResult) -> dict[str, str]:
    return {one.name: one.caused_by for one in link_causes(results)}


def test_the_table_names_probes_and_has_no_circles():
    assert {name for names in EXPLAINS.values() for name in names} | EXPLAINS.keys() <= CODES.keys()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path, name])
        for other in EXPLAINS.get(name, ()):
            visit(other, (*path, name))

    for name in EXPLAINS:
        visit(name, ())


def test_a_consequence_names_the_deepest_finding_that_explains_it():
    found = causes(
        failed("missing-tensors"), failed("index-disagrees"), failed("weights-truncated")
    )
    truncated = CODES["weights-truncated"]
    assert found == {
        "weights-truncated": "",
        "index-disagrees": truncated,
        "missing-tensors": truncated,
    }


def test_findings_of_other_folders_explain_nothing():
    found = causes(failed("weights-truncated"), failed("missing-tensors", subject="checkpoint-5"))
    assert found["missing-tensors"] == ""


def test_notes_and_settled_findings_explain_nothing_and_stay():
    cause, result = failed("weights-nonfinite"), failed("logits-nonfinite")
    assert causes(cause, result)["logits-nonfinite"] == cause.code
    for weak in (
        replace(cause, severity=Severity.NOTE),
        replace(cause, accepted="yes"),
        replace(cause, is_known=True),
        replace(cause, status=Status.PASSED),
    ):
        assert causes(weak, result)["logits-nonfinite"] == ""


def test_the_verdict_counts_causes_and_tells_of_what_follows():
    diagnosis = conclude("x", [failed("logits-nonfinite"), failed("weights-nonfinite")], {})
    assert diagnosis.verdict is Verdict.SICK
    assert diagnosis.why == "1 finding: MPD301 weights-nonfinite, and 1 that follows"
