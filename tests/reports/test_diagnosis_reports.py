"""Reports on a diagnosis: golden text, escaped names, widths, and JSON without NaN."""

from __future__ import annotations

import json

import pytest

from harness.doctor.visit import conclude
from harness.findings import Diagnosis, Evidence, ProbeResult, Severity, Status, Verdict
from reports.diagnosis_console import ASCII, write_console
from reports.diagnosis_json import write_json
from reports.diagnosis_markdown import write_markdown

HOSTILE = "q\x1b[31m|`<b>[bold]\u202e"


def made(name: str = "model.q_proj.weight", found: object = 3) -> Diagnosis:
    common = {"modes": ("FM41",)}
    return Diagnosis(
        path="out/my-lora",
        verdict=Verdict.SICK,
        why="1 finding: MPD301 weights-nonfinite",
        facts={"subjects": [{"subject": ".", "kind": "model", "tensors": 2, "bytes": 2500}]},
        probes=(
            ProbeResult(
                code="MPD101", name="weights-file-unreadable", status=Status.PASSED, **common
            ),
            ProbeResult(
                code="MPD301",
                name="weights-nonfinite",
                status=Status.FAILED,
                severity=Severity.CRITICAL,
                message=f"1 of 2 tensors holds NaN: {name}",
                evidence=(
                    Evidence(what="NaN values", file="m.st", tensor=name, found=found, expected=0),
                ),
                cause="training diverged",
                remedy="resume from an earlier checkpoint",
                **common,
            ),
            ProbeResult(
                code="MPD401",
                name="merge-without-effect",
                status=Status.SKIPPED,
                reason="no base is known",
                **common,
            ),
            ProbeResult(
                code="MPD604",
                name="accuracy-collapse",
                status=Status.CRASHED,
                reason="the base scores 0",
                **common,
            ),
        ),
    )


def test_the_console_report_reads_like_this():
    assert write_console(made(), width=80) == (
        "SICK - out/my-lora: 1 finding: MPD301 weights-nonfinite\n"
        "  model, 2 tensors, 2.5 kB\n"
        "\n"
        "✗ critical: MPD301 weights-nonfinite (FM41)\n"
        "    1 of 2 tensors holds NaN: model.q_proj.weight\n"
        "    seen     NaN values in m.st model.q_proj.weight: 3 (expected 0)\n"
        "    because  training diverged\n"
        "    fix      resume from an earlier checkpoint\n"
        "    more     mudpuppy-doctor explain MPD301\n"
        "\n"
        "could not be checked\n"
        "  ? MPD604 accuracy-collapse could not finish: the base scores 0\n"
        "  – no base is known [MPD401]\n"
        "\n"
        "checked\n"
        "  ✓ files        1 passed\n"
        "  ✗ weights      1 finding\n"
        "  – lineage      1 not checked\n"
        "  ? behaviour    1 could not finish\n"
        "\n"
        "SICK: 1 finding, 1 could not finish, 1 not checked, 1 passed, exit code 1\n"
    )


def test_a_terminal_without_unicode_gets_ascii():
    text = write_console(made(), marks=ASCII)
    assert text.isascii()
    assert "x critical: MPD301" in text


def healthy(*subjects: str) -> Diagnosis:
    facts = [{"subject": name, "kind": "adapter", "tensors": 2, "bytes": 1} for name in subjects]
    probes = [
        ProbeResult(code="MPD101", name="a", modes=(), status=Status.PASSED),
        ProbeResult(
            code="MPD201", name="b", modes=(), status=Status.SKIPPED, reason="none", applies=False
        ),
    ]
    probes += [
        ProbeResult(code=f"MPD40{n}", name="c", modes=(), status=Status.SKIPPED, reason="no base")
        for n in range(8)
    ]
    return Diagnosis(
        path="x",
        verdict=Verdict.HEALTHY,
        why="1 check found nothing wrong; 8 were not checked",
        facts={"subjects": facts},
        probes=tuple(probes),
    )


def test_a_healthy_report_says_what_was_not_checked_and_what_does_not_apply():
    lines = write_console(healthy(".")).splitlines()
    assert lines[0] == "HEALTHY - x: 1 check found nothing wrong; 8 were not checked"
    assert "  – adapter      does not apply: none" in lines
    assert ("  – no base [MPD400, MPD401, MPD402, MPD403, MPD404, MPD405 and 2 more]") in lines
    assert lines[-1] == "HEALTHY: 8 not checked, 1 passed, exit code 0"
    text = write_markdown(healthy("."))
    assert "<summary>Not checked (1)</summary>\n\n- no base: MPD400 c" in text
    assert "<summary>Does not apply (1)</summary>\n\n- none: MPD201 b" in text
    assert [one["applies"] for one in json.loads(write_json(healthy(".")))["probes"]][:3] == [
        True,
        False,
        True,
    ]


def test_one_cause_of_many_checks_that_could_not_finish_is_told_once():
    why = "q could not be asked within 5 s; raise --time-limit"
    probes = [
        ProbeResult(code=f"MPD60{n}", name="b", modes=(), status=Status.CRASHED, reason=why)
        for n in range(8)
    ]
    text = write_console(conclude("x", probes, {}), width=200)
    shown = "MPD600, MPD601, MPD602, MPD603, MPD604, MPD605 and 2 more"
    assert f"  ? 8 checks could not finish: {why} [{shown}]\n" in text
    assert text.startswith(f"UNKNOWN - x: 8 checks could not finish: {why}\n")
    assert text.count(why) == 2


def test_folders_that_are_alike_are_told_together():
    names = [".", *(f"checkpoint-{n}" for n in range(9))]
    lines = write_console(healthy(*names)).splitlines()
    first = "., checkpoint-0, checkpoint-1, checkpoint-2 and 6 more: adapter, 2 tensors, 1 bytes"
    assert lines[1] == f"  {first}"
    assert lines[2] == ""


def test_colour_changes_nothing_but_colour():
    import re

    plain, painted = write_console(made()), write_console(made(), colour=True)
    assert "\x1b[31" in painted
    assert re.sub(r"\x1b\[[0-9;]*m", "", painted) == plain


@pytest.mark.parametrize("write", [write_console, write_markdown, write_json])
def test_hostile_names_reach_no_terminal_and_no_page(write):
    text = write(made(HOSTILE))
    assert "\x1b" not in text
    assert "\u202e" not in text
    if write is write_markdown:
        assert "<b>" not in text.replace("\\<b\\>", "")


def test_lines_keep_to_the_width_unless_a_name_is_longer():
    lines = write_console(made("x" * 100), width=70).splitlines()
    assert all(len(line) <= 70 or "x" * 100 in line for line in lines)


def test_json_has_no_nan_and_the_promised_fields():
    value = json.loads(write_json(made(found=float("nan"))), parse_constant=pytest.fail)
    finding = value["probes"][1]
    assert finding["evidence"][0]["found"] == "nan"
    assert (finding["status"], finding["severity"], finding["modes"]) == (
        "failed",
        "critical",
        ["FM41"],
    )


def test_markdown_has_a_table_of_areas_and_names_what_was_not_checked():
    text = write_markdown(made())
    assert "| weights | 0 | 1 | 0 | 0 | 0 | 0 |" in text
    assert "- no base is known: MPD401 merge-without-effect" in text
    assert "## Could not finish" in text
