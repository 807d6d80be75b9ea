"""Diagnose a served model: the behavioural probes, asked through an OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness.acceptance import Acceptance
from harness.baseline import Baseline
from harness.doctor import choose_probes, conclude
from harness.doctor_paths import require_embeddings, require_file, require_questions
from harness.evidence.behaviour.endpoint import ServedJob, ask_served
from harness.evidence.source import TIME_LIMIT_S, CheckpointEvidence
from harness.findings import Diagnosis, ProbeResult, Severity
from harness.registry import ControlFailed, Missing, Probe, run_probes
from mudpuppy.errors import UsageError

SUBJECT = "endpoint"
"""How results call the served model."""
OFFERED = ("behaviour", "any_forward", "served")
"""Evidence that a server can give."""


def diagnose_served(
    url: str,
    *,
    model: str | None = None,
    base_url: str | None = None,
    base_model: str | None = None,
    quiz: str | Path | None = None,
    voice: str | Path | None = None,
    embeddings: str | Path | None = None,
    time_limit_s: float = TIME_LIMIT_S,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    fail_on: Severity | None = Severity.MEDIUM,
    accepted: Sequence[Acceptance] = (),
    baseline: Baseline | None = None,
    progress: Callable[[str], None] = lambda text: None,
    static: Diagnosis | None = None,
) -> Diagnosis:
    """Ask a served model and judge its answers.

    Args:
        url: address of the server, such as `http://127.0.0.1:1234/v1`.
        model: its name there; by default the only one.
        base_url: server of the control.
        base_model: name of the control; on the same server when no other is given.
        quiz: questions with answers (JSONL).
        voice: voice profile (YAML).
        embeddings: folder of a sentence-transformers model.
        time_limit_s: time for all questions.
        select: probes to run; all that a server has evidence for by default.
        ignore: probes not to run.
        fail_on: the least severity that fails by the exit code; None for none.
        accepted: findings that do not count.
        baseline: an earlier diagnosis.
        progress: called with one line before each question.
        static: diagnosis of the files that are served, to which this is added.

    Raises:
        UsageError: an address, a name, or a word of `select` or `ignore` is not usable.
        ModelError: the server cannot be reached.
    """
    require_questions(quiz, voice)
    probes = [one for one in choose_probes(select, ignore) if _fits(one)]
    if not probes and static is None:
        raise UsageError("none of the selected probes can ask a server")
    job = ServedJob(
        url=url,
        model=model,
        base_url=base_url,
        base_model=base_model,
        quiz=require_file(quiz, "a quiz"),
        voice=require_file(voice, "a voice profile"),
        embeddings=require_embeddings(embeddings),
        time_limit_s=time_limit_s,
    )
    subject: dict[str, Any] = {"subject": SUBJECT, "kind": "served model"}
    try:
        behaviour, served = ask_served(job, progress)
    except (ControlFailed, Missing) as failure:
        source: Any = _Failed(failure)
    else:
        given = {"behaviour": behaviour, "any_forward": None, "served": served}
        source = CheckpointEvidence(Path(), given=given)
        subject["type"] = served.model[:80]
    results: list[ProbeResult] = list(run_probes(probes, source, SUBJECT))
    subjects, count, unread = [subject], len(probes), {}
    if static is not None:
        results = [*static.probes, *results]
        subjects = [*static.facts["subjects"], subject]
        count, unread = static.facts["probes"], static.facts["unread"]
    facts = {"subjects": subjects, "probes": count, "unread": unread}
    return conclude(
        url if static is None else static.path,
        results,
        facts,
        fail_on=fail_on,
        accepted=accepted,
        baseline=baseline,
    )


class _Failed:
    """Evidence of a server that answered nothing."""

    def __init__(self, failure: Exception) -> None:
        self._failure = failure

    def get(self, name: str) -> Any:
        raise self._failure


def _fits(one: Probe) -> bool:
    """Whether a server can give a probe all it reads, and some of it answers."""
    asks = any(name in ("behaviour", "served") for name in one.needs)
    return asks and all(name in OFFERED for name in one.needs)
