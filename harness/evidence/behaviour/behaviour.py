"""What a checkpoint and its base answer to the same prompts, greedily, and what that is worth.

The models are loaded and asked in a child process (`behaviour.child`), so that a model that hangs,
crashes or takes all memory is a result. Only a caller that has a loaded model asks it here, or one
that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness.evidence.behaviour.answers import from_json, judge_answers, read_quiz, read_voice
from harness.evidence.behaviour.child import Asked, Job, ask_in_child, control_job
from harness.evidence.behaviour.reference_texts import NEUTRAL_TEXTS, PROMPTS, REFERENCES
from harness.evidence.files.jsonfile import UnreadableJson, read_object
from harness.evidence.source import TIME_LIMIT_S
from harness.facts.behaviour import BehaviourFacts
from harness.registry import ControlFailed, Missing
from mudpuppy.scoring import Question, VoiceProfile

MAX_NEW_TOKENS = 48
"""Longest answer."""


def find_file(name: str, *folders: Path | None) -> Path | None:
    """Return the first of the folders, or of their parents for `merged/`, that holds a file."""
    places = [place for folder in folders if folder for place in (folder, folder.parent)]
    return next((place / name for place in places if (place / name).is_file()), None)


def measure_behaviour(
    path: Path,
    base: Path | None,
    quiz: Path | None = None,
    voice: Path | None = None,
    *,
    model: Any = None,
    tokenizer: Any = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    time_limit_s: float = TIME_LIMIT_S,
) -> BehaviourFacts:
    """Ask a checkpoint and its base the same questions.

    Args:
        path: a model folder, or an adapter folder (then `base` is needed).
        base: the control; without it only absolute judgements are possible.
        quiz: questions with answers; a fixed set of prompts is asked when absent.
        voice: voice profile.
        model: the checkpoint, already loaded, for formats that transformers cannot load; it and
            the base are then asked in this process.
        tokenizer: its tokenizer; by default that of `path`, or of `base`.
        max_new_tokens: longest answer.
        time_limit_s: time for loading and asking in the child process.

    Raises:
        ControlFailed: a model could not be loaded and asked, so that nothing can be said.
    """
    questions, profile = read_quiz(quiz), read_voice(voice)
    asks_all = quiz is not None or voice is not None
    job = make_job(
        path,
        base,
        questions,
        asks_all=asks_all,
        max_new_tokens=max_new_tokens,
        time_limit_s=time_limit_s,
    )
    if model is None:
        asked = ask_once(job)
    else:
        from harness.evidence.behaviour.session import ask_loaded

        asked = ask_loaded(job, model, tokenizer)
    if asked.answers is None:
        raise ControlFailed(f"{path.name} could not be asked: {asked.why_silent}")
    return judge(path.name, asked, questions, profile, max_new_tokens)


def make_job(
    path: Path,
    base: Path | None,
    questions: Sequence[Question],
    *,
    asks_all: bool,
    against: Path | None = None,
    adapter: Path | None = None,
    compares: bool = False,
    max_new_tokens: int = MAX_NEW_TOKENS,
    time_limit_s: float = TIME_LIMIT_S,
) -> Job:
    """Return what is asked of whom: the quiz, or what is built in when there is none."""
    asked = [(question.prompt, question.answer) for question in questions] or REFERENCES
    return Job(
        path=path,
        base=base,
        against=against,
        adapter=adapter,
        prompts=tuple(prompt for prompt, _ in asked),
        golds=tuple(gold for _, gold in asked),
        texts=NEUTRAL_TEXTS,
        max_new_tokens=max_new_tokens,
        asks_all=asks_all,
        compares=compares,
        time_limit_s=time_limit_s,
    )


def judge(
    name: str,
    asked: Asked,
    questions: Sequence[Question],
    profile: VoiceProfile | None,
    max_new_tokens: int,
    embeddings: Path | None = None,
    **about: Any,
) -> BehaviourFacts:
    """Score the answers.

    Args:
        name: of the checkpoint's folder.
        asked: what was seen of it and its base.
        questions: what was asked; empty for the prompts that are built in.
        profile: the voice it is to have, if any.
        max_new_tokens: longest answer.
        embeddings: model that compares answers by their meaning.
        about: what else `judge_answers` is told.

    Raises:
        Missing: no answer was finished in time.
    """
    assert asked.answers is not None
    prompts = tuple(question.prompt for question in questions) or PROMPTS
    mine, control = asked.answers, asked.control
    if questions or profile is not None:  # all were asked: what is missing was not in time
        kept = [n for n in range(len(prompts)) if mine.ended[n] is not None]
        kept = [n for n in kept if control is None or control.ended[n] is not None]
        if not kept:
            raise Missing("no answer was finished in time; raise --time-limit")
        mine, control = mine.choose(kept), None if control is None else control.choose(kept)
        prompts = tuple(prompts[n] for n in kept)
        questions = [questions[n] for n in kept] if questions else ()
    return judge_answers(
        name, prompts, mine, control, questions, profile, max_new_tokens, embeddings, **about
    )


_known: dict[Job, Asked] = {}
_rooms: dict[Job, TemporaryDirectory[str]] = {}


def ask_once(
    job: Job,
    *,
    in_process: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> Asked:
    """Ask checkpoint and base; a base is asked once for many checkpoints.

    Raises:
        ControlFailed: one of the two could not be asked.
    """
    control, kept, key = None, None, control_job(job)
    if key is not None:
        control = _known.get(key)
        kept = Path(_rooms.setdefault(key, TemporaryDirectory(prefix="mudpuppy-base-")).name)
    if in_process:
        from harness.evidence.behaviour.session import ask

        asked = ask(job, control=control, kept=kept, say=progress)
    else:
        asked = ask_in_child(job, control=control, kept=kept, progress=progress)
    if key is not None and asked.control is not None:
        _known[key] = asked
    return asked


def read_stored(path: Path, subject: str) -> BehaviourFacts | None:
    """Return what a run measured, or None where it measured another subject.

    Args:
        path: the run's record.
        subject: name of the checkpoint's folder.

    Raises:
        Missing: the record is damaged.
    """
    try:
        facts = from_json(read_object(path))
    except (UnreadableJson, ValueError) as problem:
        raise Missing(f"{path.name} cannot be read: {problem}") from problem
    return facts if facts.subject == subject else None
