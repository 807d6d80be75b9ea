"""Which finding explains which: the table fits the registry, and nothing explains itself."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from harness.doctor.root_causes import EXPLAINS, SAME_FILE, link_causes
from harness.doctor.visit import conclude
from harness.findings import Evidence, ProbeResult, Severity, Status, Verdict
from harness.registry import load_probes
from reports.diagnosis_summary import group_findings

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


def test_the_record_of_a_run_explains_its_checkpoints():
    found = causes(failed("loss-not-finite"), failed("weights-nonfinite", subject="checkpoint-5"))
    assert found["weights-nonfinite"] == CODES["loss-not-finite"]


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


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [*EXPLAINS, *sorted({n for names in EXPLAINS.values() for n in names})]
            ),
            st.sampled_from([".", "checkpoint-1", "checkpoint-2"]),
            st.sampled_from(list(Severity)),
        ),
        max_size=12,
        unique_by=lambda one: one[:2],
    )
)
def test_every_finding_is_shown_once_whatever_explains_what(chosen):
    results = [failed(name, subject, severity) for name, subject, severity in chosen]
    diagnosis = conclude("x", results, {})
    shown = []
    for group in group_findings(diagnosis):
        for one in (group, *group.consequences):
            places = (one.finding.subject, *one.elsewhere)
            shown += [(one.finding.code, place) for place in places]
    assert sorted(shown) == sorted((one.code, one.subject) for one in results)


def placed(name: str, *files: str) -> ProbeResult:
    evidence = tuple(Evidence(what="w", file=file, tensor="t") for file in files)
    return replace(failed(name), evidence=evidence)


def test_the_pairs_of_the_same_file_are_pairs_of_the_table():
    for name, explained in SAME_FILE.items():
        assert set(explained) <= set(EXPLAINS[name])


def test_a_shard_that_is_cut_off_explains_nothing_in_another_shard():
    for name in SAME_FILE["weights-truncated"]:
        cut = placed("weights-truncated", "4.safetensors")
        assert causes(cut, placed(name, "4.safetensors"))[name] == cut.code
        assert causes(cut, placed(name, "1.safetensors"))[name] == ""
        assert causes(cut, placed(name, "4.safetensors", "1.safetensors"))[name] == ""
    assert causes(cut, placed("missing-tensors", "index.json"))["missing-tensors"] == cut.code
