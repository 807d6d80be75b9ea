"""A diagnosis in which everything occurs that a report can be asked to show."""

from __future__ import annotations

from datetime import date
from typing import Any

from harness.doctor import Judging
from harness.doctor.acceptance import Acceptance
from harness.doctor.visit import conclude
from harness.findings import (
    Diagnosis,
    Evidence,
    Fixed,
    ProbeResult,
    Severity,
    Status,
    fingerprint,
)

HOSTILE = "q\x1b[31m|`<img src=x onerror=alert(1)>[bold]\u202e](x) @all ##[cmd]\n::error::x"


def finding(
    code: str, name: str, severity: Severity, text: str, subject: str = ".", found: Any = 3
) -> ProbeResult:
    evidence = (Evidence(what=text, file=f"{text}.st", tensor=text, found=found, expected=0),)
    return ProbeResult(
        code=code,
        name=name,
        modes=("FM41",),
        status=Status.FAILED,
        severity=severity,
        message=f"wrong: {text}",
        evidence=evidence,
        cause=f"cause: {text}",
        remedy=f"do: {text}",
        subject=subject,
        fingerprint=fingerprint(code, subject, evidence),
    )


def everything(text: str = "model.q_proj.weight", *, known: bool = True) -> Diagnosis:
    """Every ending, severity and way to be settled; `text` stands wherever a stranger's can."""
    common: dict[str, Any] = {"modes": ("FM17",), "subject": "."}
    results = [
        ProbeResult(
            code="MPD101",
            name="weights-file-unreadable",
            status=Status.PASSED,
            message=text,
            **common,
        ),
        finding("MPD301", "weights-nonfinite", Severity.CRITICAL, text),
        finding("MPD606", "logits-nonfinite", Severity.CRITICAL, text),
        finding("MPD801", "vocabulary-mismatch", Severity.HIGH, text),
        finding("MPD801", "vocabulary-mismatch", Severity.HIGH, text, subject=text),
        finding("MPD106", "weights-pickled", Severity.MEDIUM, text),
        finding("MPD205", "adapter-config-disagrees", Severity.NOTE, text),
        finding("MPD105", "shards-stale", Severity.HIGH, text),
        ProbeResult(
            code="MPD401", name="merge-without-effect", status=Status.SKIPPED, reason=text, **common
        ),
        ProbeResult(
            code="MPD201",
            name="adapter-stacked",
            status=Status.SKIPPED,
            applies=False,
            reason=text,
            **common,
        ),
        ProbeResult(
            code="MPD604", name="accuracy-collapse", status=Status.CRASHED, reason=text, **common
        ),
    ]
    facts: list[dict[str, Any]] = [
        {"subject": one, "kind": "model", "tensors": 2, "bytes": 2500} for one in (".", text)
    ]
    facts[1]["answers"] = f"accuracy 0.95 (base 0.25), {text}"
    accepted = [
        Acceptance(probe="MPD105", reason=text),
        Acceptance(probe="MPD999", reason="never", until=date(2026, 1, 1)),
    ]
    judging = Judging(accepted=accepted, baseline=_Known(text, known))
    return conclude(f"out/{text}", results, {"subjects": facts}, judging)


class _Known:
    """An earlier diagnosis that knew the pickled weights, and a finding that is gone."""

    def __init__(self, text: str, known: bool) -> None:
        self.text, self.known = text, known

    def compare(self, results: Any) -> Any:
        from dataclasses import replace

        if not self.known:
            return tuple(results), ()
        marked = tuple(
            replace(one, is_known=True) if one.code == "MPD106" else one for one in results
        )
        gone = Fixed(code="MPD302", name="missing-tensors", subject=".", message=self.text)
        return marked, (gone,)
