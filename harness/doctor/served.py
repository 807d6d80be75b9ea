"""Diagnose a served model: the behavioural probes, asked through an OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.doctor.answers_told import describe_answers, why_unjudged
from harness.doctor.judging import USUAL, Examined, Judging
from harness.doctor.paths import require_embeddings, require_file, require_questions
from harness.doctor.visit import choose_probes, conclude
from harness.evidence.behaviour.endpoint import ServedJob, ask_served
from harness.evidence.source import CheckpointEvidence
from harness.facts.behaviour import BehaviourFacts
from harness.findings import Diagnosis
from harness.registry import ControlFailed, Missing, Probe, run_probes
from mudpuppy.errors import UsageError

SUBJECT = "endpoint"
"""How results call the served model."""
OFFERED = ("behaviour", "any_forward", "served")
"""Evidence that a server can give."""


def diagnose_served(
    url: str,
    judging: Judging = USUAL,
    *,
    model: str | None = None,
    base_url: str | None = None,
    base_model: str | None = None,
) -> Diagnosis:
    """Ask a served model and judge its answers.

    Args:
        url: address of the server, such as `http://127.0.0.1:1234/v1`.
        judging: quiz, voice and embeddings, probes to run (all that a server has evidence for by
            default), and what counts.
        model: its name there; by default the only one.
        base_url: server of the control.
        base_model: name of the control; on the same server when no other is given.

    Raises:
        UsageError: an address, a name, or a word of `select` or `ignore` is not usable.
        EndpointError: the server cannot be reached.
    """
    if not choose_served(judging.select, judging.ignore):
        raise UsageError("none of the selected probes can ask a server")
    seen = examine_served(url, judging, model=model, base_url=base_url, base_model=base_model)
    facts = {"subjects": [seen.subject], "probes": len(seen.results), "unread": seen.unread}
    return conclude(url, seen.results, facts, judging)


def examine_served(
    url: str,
    judging: Judging = USUAL,
    *,
    model: str | None = None,
    base_url: str | None = None,
    base_model: str | None = None,
) -> Examined:
    """Ask a served model and run the probes on its answers; nothing is concluded.

    The arguments and the errors are those of `diagnose_served`.
    """
    require_questions(judging.quiz, judging.voice)
    job = ServedJob(
        url=url,
        model=model,
        base_url=base_url,
        base_model=base_model,
        quiz=require_file(judging.quiz, "a quiz"),
        voice=require_file(judging.voice, "a voice profile"),
        embeddings=require_embeddings(judging.embeddings),
        time_limit_s=judging.time_limit_s,
    )
    subject = {"subject": SUBJECT, "kind": "served model"}
    unread: dict[str, str] = {}
    behaviour: BehaviourFacts | None = None
    try:
        behaviour, served = ask_served(job, judging.progress)
    except (ControlFailed, Missing) as failure:
        source: Any = _Failed(failure)
        unread[SUBJECT] = f"--endpoint could not ask it: {failure}"
    else:
        given = {"behaviour": behaviour, "any_forward": None, "served": served}
        source = CheckpointEvidence(Path(), given=given)
        subject["type"] = served.model[:80]
        subject["answers"] = describe_answers(behaviour)
    results = run_probes(choose_served(judging.select, judging.ignore), source, SUBJECT)
    asked = (("--quiz", judging.quiz), ("--voice", judging.voice))
    flags = [name for name, file in asked if file is not None]
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
