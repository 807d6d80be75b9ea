"""A checkpoint that a run cannot go on from as it was.

What it does: looks for what transformers' trainer reads when it resumes: optimizer, scheduler,
random state, trainer_state.json.

Why it is bad: what is absent is made anew without a word: a fresh optimizer forgets its moments, a
fresh scheduler warms up again, a fresh state starts at step 0 (FM14, FM58).

Example: checkpoint-400 without optimizer.pt: the disk was full while it was written.

What to do: resume from the newest checkpoint that is complete. A checkpoint of weights alone
(`save_only_model`) is fine to load, and cannot be resumed from.
"""

from __future__ import annotations

from harness.facts.outputs import ResumeSet
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe

GRAVE = ("optimizer", "trainer state")
"""Parts without which another run goes on."""


@probe("MPD114", modes=["FM14", "FM58"], severity=Severity.MEDIUM)
def check(resume_set: ResumeSet) -> Finding | str:
    """Look for parts that are absent or empty."""
    held = resume_set
    if held.empty:
        evidence = [Evidence(what="size", file=name, found=0) for name in held.empty]
        return _finding(f"{held.empty[0]} is empty", evidence, Severity.MEDIUM)
    absent = [part for part in held.absent if not (held.sharded and part != "trainer state")]
    if not absent:
        return f"a run can go on from it: {', '.join(held.present)}"
    evidence = [Evidence(what=part, found="absent") for part in absent]
    if held.present == ("trainer state",):
        return _finding(
            "it holds the weights alone: fine to load, and no run can go on from it",
            evidence,
            Severity.NOTE,
        )
    grave = any(part in GRAVE for part in absent)
    return _finding(
        f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} not there, and resuming "
        "makes it anew without a word",
        evidence,
        Severity.MEDIUM if grave else Severity.NOTE,
    )


def _finding(message: str, evidence: list[Evidence], severity: Severity) -> Finding:
    return Finding(
        message=message,
        evidence=tuple(evidence),
        cause="the save was interrupted, files were copied in part, or save_only_model was set",
        remedy="resume from the newest checkpoint that is complete",
        severity=severity,
    )
