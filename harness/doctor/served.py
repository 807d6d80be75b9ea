"""Diagnose a served model: the behavioural probes, asked through an OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness.doctor.acceptance import Acceptance
from harness.doctor.answers_told import describe_answers, why_unjudged
from harness.doctor.baseline import Baseline
from harness.doctor.paths import require_embeddings, require_file, require_questions
from harness.doctor.visit import Examined, choose_probes, conclude
from harness.evidence.behaviour.endpoint import ServedJob, ask_served
from harness.evidence.source import TIME_LIMIT_S, CheckpointEvidence
from harness.facts.behaviour import BehaviourFacts
from harness.findings import Diagnosis, Severity
from harness.registry import ControlFailed, Missing, Probe, run_probes
from mudpuppy.errors import UsageError

SUBJECT = "endpoint"
"""How results call the served model."""
OFFERED = ("behaviour", "any_forward", "served")
"""Evidence that a server can give."""


def diagnose_served(
    url: str,
    *,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    fail_on: Severity | None = Severity.MEDIUM,
    accepted: Sequence[Acceptance] = (),
    baseline: Baseline | None = None,
    **asking: Any,
) -> Diagnosis:
    """Ask a served model and judge its answers.

    Args:
        url: address of the server, such as `http://127.0.0.1:1234/v1`.
        select: probes to run; all that a server has evidence for by default.
        ignore: probes not to run.
        fail_on: the least severity that fails by the exit code; None for none.
        accepted: findings that do not count.
        baseline: an earlier diagnosis.
        asking: further arguments of `examine_served`.

    Raises:
        UsageError: an address, a name, or a word of `select` or `ignore` is not usable.
        ModelError: the server cannot be reached.
    """
    if not choose_served(select, ignore):
        raise UsageError("none of the selected probes can ask a server")
    seen = examine_served(url, select=select, ignore=ignore, **asking)
    facts = {"subjects": [seen.subject], "probes": len(seen.results), "unread": seen.unread}
    return conclude(url, seen.results, facts, fail_on=fail_on, accepted=accepted, baseline=baseline)


def examine_served(
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
    progress: Callable[[str], None] = lambda text: None,
) -> Examined:
    """Ask a served model and run the probes on its answers; nothing is concluded.

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
        progress: called with one line before each question.

    Raises:
        UsageError: an address, a name, or a word of `select` or `ignore` is not usable.
        EndpointError: the server cannot be reached.
    """
    require_questions(quiz, voice)
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
    subject = {"subject": SUBJECT, "kind": "served model"}
    unread: dict[str, str] = {}
    behaviour: BehaviourFacts | None = None
    try:
        behaviour, served = ask_served(job, progress)
    except (ControlFailed, Missing) as failure:
        source: Any = _Failed(failure)
        unread[SUBJECT] = f"--endpoint could not ask it: {failure}"
    else:
        given = {"behaviour": behaviour, "any_forward": None, "served": served}
        source = CheckpointEvidence(Path(), given=given)
        subject["type"] = served.model[:80]
        subject["answers"] = describe_answers(behaviour)
    results = run_probes(choose_served(select, ignore), source, SUBJECT)
    flags = [name for name, file in (("--quiz", quiz), ("--voice", voice)) if file is not None]
    if behaviour is not None and (why := why_unjudged(results, behaviour, flags)):
        unread[SUBJECT] = why
    return Examined(results=results, subject=subject, unread=unread)


def choose_served(select: Sequence[str], ignore: Sequence[str]) -> tuple[Probe, ...]:
    """Return those of the selected probes that a server has evidence for.

    Raises:
        UsageError: a word names no probe.
    """
    return tuple(one for one in choose_probes(select, ignore) if _fits(one))


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
