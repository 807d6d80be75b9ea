"""Evidence about a served model: what it answers through an OpenAI-compatible server."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.evidence.behaviour.answers import judge_answers, read_quiz, read_voice
from harness.evidence.behaviour.behaviour import MAX_NEW_TOKENS
from harness.evidence.behaviour.reference_texts import PROMPTS
from harness.evidence.source import CheckpointEvidence, provides
from harness.facts.behaviour import Answers, BehaviourFacts
from harness.facts.served import Served
from harness.registry import ControlFailed, NotApplicable
from mudpuppy.asking.endpoint import Endpoint
from mudpuppy.asking.reply import Reply

PATIENT_PROMPTS, PATIENT_TOKENS = 4, 256
"""Of how many unfinished answers it is seen whether they end at all, and within how many tokens."""
ALONE_PROMPTS, ALONE_TOKENS = 2, 1024
"""The same without a control: nobody else says how long an answer may be."""
NAME_CONTROL = "name the base as it is served: --endpoint-base URL or --base-model NAME"
"""What to type so that there is a control."""


@provides("served")
def give_served(evidence: CheckpointEvidence) -> Served:
    """Say that a folder is not served; `harness.doctor.served` gives this evidence itself."""
    raise NotApplicable("no server was named; pass --endpoint URL")


@dataclass(frozen=True, kw_only=True)
class ServedJob:
    """Which served models are asked what."""

    url: str
    """The server."""
    model: str | None = None
    """The model, as the server calls it; by default its only one."""
    base_url: str | None = None
    """The server of the control; the same one when only `base_model` is given."""
    base_model: str | None = None
    """The control's name."""
    quiz: Path | None = None
    """Questions with answers."""
    voice: Path | None = None
    """Voice profile."""
    embeddings: Path | None = None
    """Folder of a sentence-transformers model."""
    time_limit_s: float = 900.0
    """Time for all of it."""


def ask_served(
    job: ServedJob, say: Callable[[str], None] = lambda text: None
) -> tuple[BehaviourFacts, Served]:
    """Ask a served model, and its control where one is named, the same questions.

    Prompts that either of the two gave no answer to are left out of the facts.

    Raises:
        UsageError: a server's address or a model's name is not usable.
        EndpointError: a server cannot be reached.
        ControlFailed: no prompt was answered, or not by the control.
    """
    deadline = time.monotonic() + job.time_limit_s
    questions = read_quiz(job.quiz)
    prompts = tuple(question.prompt for question in questions) or PROMPTS
    is_alone = not (job.base_url or job.base_model)
    mine = _ask(Endpoint(job.url, deadline), job.model, prompts, say, is_alone=is_alone)
    control: tuple[Served, tuple[bool, ...]] | None = None
    if not is_alone:
        control = _ask(Endpoint(job.base_url or job.url, deadline), job.base_model, prompts, say)
    asked = [mine[0], *([control[0]] if control else [])]
    for served in asked:
        if len(served.failed) == len(served.replies):
            problem = served.failed[0].problem
            raise ControlFailed(f"{served.model[:80]} answered no prompt: {problem}")
    kept = [n for n in range(len(prompts)) if not any(one.replies[n].problem for one in asked)]
    if not kept:
        raise ControlFailed("no prompt was answered by both, the model and its control")
    facts = judge_answers(
        mine[0].model,
        tuple(prompts[n] for n in kept),
        _answers(mine, kept),
        None if control is None else _answers(control, kept),
        [questions[n] for n in kept] if questions else [],
        read_voice(job.voice),
        MAX_NEW_TOKENS,
        job.embeddings,
        is_chat=True,
        name_control=NAME_CONTROL,
    )
    return facts, mine[0]


def _ask(
    server: Endpoint,
    wanted: str | None,
    prompts: Sequence[str],
    say: Callable[[str], None],
    *,
    is_alone: bool = False,
) -> tuple[Served, tuple[bool, ...]]:
    """Ask one model everything; also whether the first few unfinished answers end later."""
    model = server.choose_model(wanted)
    replies = []
    for number, prompt in enumerate(prompts, start=1):
        if time.monotonic() > server.deadline:
            replies.append(Reply(problem="the time limit was over; raise --time-limit"))
            continue
        say(f"{model[:80]} answers question {number} of {len(prompts)}")
        replies.append(server.chat(model, prompt, MAX_NEW_TOKENS))
    served = Served(
        model=model, replies=tuple(replies), limit=MAX_NEW_TOKENS, without=dict(server.without)
    )
    cut = [prompt for prompt, reply in zip(prompts, replies, strict=True) if reply.ended is False]
    patient: tuple[bool, ...] = ()
    if len(cut) >= max(2, len(prompts) // 2):
        count, limit = PATIENT_PROMPTS, PATIENT_TOKENS
        if is_alone:
            count, limit = ALONE_PROMPTS, ALONE_TOKENS
        say(f"{model[:80]}: {limit} tokens for some unfinished answers")
        later = [server.chat(model, prompt, limit) for prompt in cut[:count]]
        if is_alone:  # what was not answered in time, or is cut in a thought, tells nothing
            later = [one for one in later if not one.problem and one.is_said]
        patient = tuple(reply.ended is True for reply in later)
    return served, patient


def _answers(asked: tuple[Served, tuple[bool, ...]], kept: Sequence[int]) -> Answers:
    """Return replies in the form that local answers have.

    Servers count the end token or not: an answer without text that ended is an empty one. One that
    was cut while the model thinks is neither finished nor unfinished.
    """
    served, patient = asked
    replies = [served.replies[n] for n in kept]
    return Answers(
        texts=tuple(reply.text for reply in replies),
        new_tokens=tuple(map(_count, replies)),
        ended=tuple(reply.ended if reply.is_said else None for reply in replies),
        patient=patient,
    )


def _count(reply: Reply) -> int | None:
    """Return the tokens of an answer; None where nobody counted them."""
    if not reply.text.strip():
        return None if reply.ended is False else 0
    return reply.tokens
