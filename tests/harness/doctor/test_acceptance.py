"""Accepted findings and the earlier diagnosis: what counts, what is told, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date

import pytest

from harness.doctor import Judging
from harness.doctor.acceptance import Acceptance, accept
from harness.doctor.baseline import read_baseline
from harness.doctor.visit import conclude
from harness.findings import (
    Evidence,
    ProbeResult,
    Severity,
    Status,
    Verdict,
    fingerprint,
    hash_places,
)
from mudpuppy.errors import UsageError
from reports.diagnosis_json import write_json

TODAY = date(2026, 6, 1)


def failed(*places: tuple[str, str], code: str = "MPD301", subject: str = ".") -> ProbeResult:
    evidence = tuple(
        Evidence(what="NaN", file=file, tensor=tensor, found=len(places)) for file, tensor in places
    )
    return ProbeResult(
        code=code,
        name="weights-nonfinite",
        modes=("FM41",),
        status=Status.FAILED,
        severity=Severity.CRITICAL,
        message="m",
        evidence=evidence,
        subject=subject,
        fingerprint=fingerprint(code, subject, evidence),
        places=hash_places(evidence),
    )


def passed(code: str = "MPD301") -> ProbeResult:
    return ProbeResult(code=code, name="weights-nonfinite", modes=(), status=Status.PASSED)


FINDING = failed(("a.st", "layer.0"), ("a.st", "layer.1"))


@pytest.mark.parametrize(
    ("words", "is_covered"),
    [
        ({}, True),
        ({"probe": "weights-nonfinite"}, True),
        ({"probe": "mpd301"}, True),
        ({"probe": "MPD3"}, False),
        ({"tensor": "layer.*"}, True),
        ({"tensor": "layer.0"}, False),  # layer.1 is not accepted
        ({"file": "a.st"}, True),
        ({"file": "b.st"}, False),
        ({"subject": "checkpoint-*"}, False),
        ({"until": TODAY}, True),
    ],
)
def test_an_acceptance_covers_a_whole_finding_or_nothing(words, is_covered):
    one = Acceptance(**{"probe": "MPD301", "reason": "known", **words})
    (result,), remarks = accept([FINDING], [one], TODAY)
    assert (result.accepted == "known") is is_covered
    assert bool(remarks) is not is_covered
    assert result.is_sick is not is_covered


def test_an_acceptance_that_is_over_hides_nothing():
    one = Acceptance(probe="MPD301", reason="known", until=date(2026, 5, 31))
    (result,), remarks = accept([FINDING], [one], TODAY)
    assert result.is_sick
    assert remarks == ("the acceptance of MPD301 ended on 2026-05-31",)


def test_a_finding_without_a_place_is_not_accepted_by_a_place():
    nowhere = failed(("", ""))
    (result,), _ = accept([nowhere], [Acceptance(probe="MPD301", reason="r", tensor="l*")], TODAY)
    assert not result.accepted


def test_accepted_findings_leave_it_healthy_and_are_counted():
    one = Acceptance(probe="MPD301", reason="known")
    diagnosis = conclude("x", [FINDING, passed("MPD101")], {}, Judging(accepted=[one]))
    assert (diagnosis.verdict, diagnosis.exit_code) == (Verdict.HEALTHY, 0)
    assert diagnosis.why == "1 check found nothing wrong; 1 finding accepted"
    assert [one.code for one in diagnosis.findings] == ["MPD301"]  # shown all the same


def test_a_fingerprint_knows_places_and_no_numbers():
    same = failed(("a.st", "layer.1"), ("a.st", "layer.0"))
    assert same.fingerprint == FINDING.fingerprint
    others = [
        failed(("a.st", "layer.0")),
        failed(("b.st", "layer.0"), ("a.st", "layer.1")),
        failed(*[("a.st", "layer.0"), ("a.st", "layer.1")], subject="checkpoint-1"),
        failed(*[("a.st", "layer.0"), ("a.st", "layer.1")], code="MPD302"),
    ]
    assert len({one.fingerprint for one in (FINDING, *others)}) == 5


def compare(tmp_path, earlier, now):
    file = tmp_path / "earlier.json"
    file.write_text(write_json(conclude("x", earlier, {})), encoding="utf-8")
    return conclude("x", now, {}, Judging(baseline=read_baseline(file)))


def test_what_was_there_before_is_no_worse(tmp_path):
    found = compare(tmp_path, [FINDING], [FINDING, passed("MPD101")])
    assert (found.verdict, found.exit_code) == (Verdict.NO_WORSE, 0)
    assert found.why == "nothing new; 1 finding known from before"


def test_fewer_places_are_known_and_other_places_are_new(tmp_path):
    assert compare(tmp_path, [FINDING], [failed(("a.st", "layer.1"))]).exit_code == 0
    assert compare(tmp_path, [FINDING], [failed(("a.st", "layer.2"))]).exit_code == 1
    more = failed(("a.st", "layer.0"), ("a.st", "layer.1"), ("a.st", "layer.2"))
    assert compare(tmp_path, [FINDING], [more]).exit_code == 1
    assert compare(tmp_path, [passed()], [FINDING]).exit_code == 1


def test_many_places_are_known_again_though_a_report_shows_five(tmp_path):
    many = failed(*[("a.st", f"layer.{n}") for n in range(20)])
    assert compare(tmp_path, [many], [many]).exit_code == 0
    fewer = failed(*[("a.st", f"layer.{n}") for n in range(3, 18)])
    assert compare(tmp_path, [many], [fewer]).exit_code == 0
    others = failed(*[("a.st", f"layer.{n}") for n in range(8, 21)])
    assert compare(tmp_path, [many], [others]).exit_code == 1


def test_gone_is_only_what_was_looked_for_and_not_found(tmp_path):
    assert compare(tmp_path, [FINDING], [passed()]).fixed[0].code == "MPD301"
    skipped = ProbeResult(
        code="MPD301", name="n", modes=(), status=Status.SKIPPED, reason="no weights"
    )
    assert not compare(tmp_path, [FINDING], [skipped]).fixed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"schema_version": 2, "probes": []}',
        '{"schema_version": 3}',
        "[" * 100_000,
        "\udcff",
    ],
)
def test_a_baseline_that_is_none_is_refused(tmp_path, text):
    file = tmp_path / "b.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError, match="--baseline"):
        read_baseline(file)


def test_odd_parts_of_a_baseline_are_no_crash(tmp_path):
    file = tmp_path / "b.json"
    odd = [1, None, {"status": "failed"}, {"status": "failed", "fingerprint": 3, "evidence": [1]}]
    file.write_text(json.dumps({"schema_version": 3, "probes": odd}))
    assert list(read_baseline(file).findings) == ["3"]
    with pytest.raises(UsageError, match="No such file"):
        read_baseline(tmp_path / "none.json")


def calling(*names: str, severity: Severity = Severity.CRITICAL) -> ProbeResult:
    evidence = (Evidence(what="calls", file="training_args.bin", keys=names),)
    return replace(
        FINDING,
        code="MPD106",
        name="weights-pickled",
        severity=severity,
        evidence=evidence,
        fingerprint=fingerprint("MPD106", ".", evidence),
        places=hash_places(evidence),
    )


def test_a_worse_finding_at_a_known_place_is_new(tmp_path):
    mild = replace(FINDING, severity=Severity.NOTE)
    assert compare(tmp_path, [mild], [FINDING]).exit_code == 1
    assert compare(tmp_path, [FINDING], [mild]).findings[0].is_known
    assert compare(tmp_path, [FINDING], [replace(FINDING, severity=Severity.HIGH)]).exit_code == 0


def test_another_function_in_a_known_pickle_is_new(tmp_path):
    earlier = [calling("my.Config", "os.getcwd")]
    assert compare(tmp_path, earlier, [calling("os.getcwd")]).exit_code == 0
    assert compare(tmp_path, earlier, [calling("posix.system")]).exit_code == 1
    assert compare(tmp_path, earlier, [calling("my.Config", "posix.system")]).exit_code == 1


@pytest.mark.parametrize(
    ("words", "names", "is_covered"),
    [
        ({}, ["my.Config"], False),
        ({"file": "training_args.bin"}, ["my.Config"], False),
        ({"key": "my.*"}, ["my.Config"], True),
        ({"key": "my.*"}, ["my.Config", "my.Other"], True),
        ({"key": "my.*"}, ["my.Config", "posix.system"], False),
        ({"key": "*"}, ["posix.system"], True),
    ],
)
def test_what_a_pickle_calls_is_accepted_by_its_name_only(words, names, is_covered):
    one = Acceptance(probe="MPD106", reason="ours", **words)
    (result,), remarks = accept([calling(*names)], [one], TODAY)
    assert bool(result.accepted) is is_covered
    assert is_covered or "must name what it covers" in remarks[0]


def test_a_mild_finding_with_keys_is_accepted_without_them():
    one = Acceptance(probe="MPD106", reason="ours")
    (result,), _ = accept([calling("a.b", severity=Severity.HIGH)], [one], TODAY)
    assert result.accepted
