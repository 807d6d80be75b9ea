"""Forced rejections and coverage have sections of their own, and are no failures."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO

from rich.console import Console

from harness.results import MatrixResult
from reports.audit_text import list_working, summarise_audit
from reports.matrix_console import print_verdict
from reports.matrix_json import write_json
from reports.matrix_markdown import write_markdown
from tests.reports.matrix_data import make_matrix

MATRIX = make_matrix()
AUDIT = tuple(
    {"name": name, "cell_id": "0" * 12, "codes": codes, "works": outcome == "passed",
     "outcome": outcome, "message": "<b>so</b>"}
    for name, codes, outcome in (
        ("r07", ["MP-R07"], "passed"),
        ("r06-*grpo*", ["MP-R06", "MP-R41"], "passed"),
        ("r01", ["MP-R01"], "crashed"),
        ("r02", ["MP-R02"], "failed"),
        ("r54", ["MP-R54"], "not-run"),
    )
)  # fmt: skip
COVERAGE = {
    "strength": 2, "feasible": 40, "covered": 39, "rows": 5, "share": 0.975,
    "missing": ["lora bf16: packing, no dora"], "groups": [],
}  # fmt: skip


def test_the_audit_counts_what_ran() -> None:
    assert (
        "2 of 4 rejected combinations would have worked by force (the others: 1 crashed, 1 failed)"
    ) == summarise_audit(AUDIT)
    assert ["r07 (MP-R07)", "r06-*grpo* (MP-R06 MP-R41)"] == list_working(AUDIT)


def test_both_have_their_section_in_every_report_and_change_no_verdict() -> None:
    matrix = replace(MATRIX, audit=AUDIT, coverage=COVERAGE)

    page = write_markdown(matrix)
    assert "## Rejections that were forced\n\n2 of 4 rejected combinations" in page
    assert "- r06-\\*grpo\\* (MP-R06 MP-R41)" in page
    assert "## Coverage\n\n39 of 40 pairs of features" in page
    assert "- missing: lora bf16: packing, no dora" in page

    console = Console(file=StringIO(), width=200)
    print_verdict(console, matrix, "report.md", quiet=True)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "  r07 (MP-R07)" in said
    assert "39 of 40 pairs" in said

    again = MatrixResult.from_json(json.loads(write_json(matrix)))
    assert (AUDIT, COVERAGE) == (again.audit, again.coverage)
    assert MATRIX.exit_code == again.exit_code


def test_neither_is_mentioned_where_there_is_none() -> None:
    page = write_markdown(MATRIX)

    assert "forced" not in page
    assert "## Coverage" not in page
