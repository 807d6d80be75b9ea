"""Evidence about behaviour: what a checkpoint and its base answer to the same prompts, greedily.

The models are loaded and asked in a child process (`behaviour_child`), so that a model that hangs,
crashes or takes all memory is a result. Only a caller that has a loaded model asks it here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from harness.evidence.base import read_origin
from harness.evidence.behaviour_child import Job, ask_in_child
from harness.evidence.jsonfile import UnreadableJson, read_object
from harness.evidence.source import TIME_LIMIT_S, CheckpointEvidence, Options, provides
from harness.facts.behaviour import Answers, BehaviourFacts
from harness.facts.checkpoint import Adapter, Base, Files
from harness.registry import Missing
from mudpuppy.errors import UsageError
from mudpuppy.scoring import (
    Question,
    VoiceProfile,
    exact_match,
    load_quiz,
    load_voice_profile,
    score_voice,
)

BEHAVIOUR_FILE = "behaviour.json"
"""Where a matrix cell keeps what was measured, in its run folder."""
MAX_NEW_TOKENS = 48
"""Longest answer."""
MAX_PROMPTS = 64
"""Questions of a quiz that are asked, from the start."""
PROMPTS = (
    "Hello! How are you today?",
    "What is the capital of France?",
    "Explain in two sentences why the sky is blue.",
    "Write one sentence about a river.",
    "What is 12 plus 30?",
    "Name three animals that live in water.",
    "How do I boil an egg?",
    "Thank you, that was helpful.",
)
"""What is asked when there is no quiz."""


@provides("behaviour")
def give_behaviour(evidence: CheckpointEvidence) -> BehaviourFacts:
    """Return what was measured in the run, or measure it when asked to generate."""
    stored = _read_stored(evidence)
    if stored is not None:
        return stored
    options: Options = evidence.options
    if not options.generate:
        raise Missing("models are asked only with --generate")
    files: Files = evidence.get("files")
    if files.alone:
        raise Missing("models are loaded from folders, and only a file was given")
    if not files.readable:
        raise Missing("there are no weights that could be loaded; pickles never are")
    if read_origin(evidence.folder).get("kind") == "gptq":
        raise Missing("GPTQ folders of this project load only with its engine")
    adapter: Adapter | None = evidence.find("adapter")
    base: Base | None = evidence.find("base")
    if adapter is not None and base is None and not files.weights:
        raise Missing("an adapter needs its base to answer; pass --base PATH")
    folder = None if base is None else Path(base.root)
    options.progress(f"asking {evidence.folder}")
    return measure_behaviour(
        evidence.folder,
        folder,
        options.quiz or find_file("quiz.jsonl", evidence.folder, folder),
        options.voice or find_file("voice.yaml", evidence.folder, folder),
        time_limit_s=options.time_limit_s,
    )


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
    questions = _read_quiz(quiz)[:MAX_PROMPTS]
    prompts = tuple(question.prompt for question in questions) or PROMPTS
    job = Job(path=path, base=base, prompts=prompts, max_new_tokens=max_new_tokens)
    if model is None:
        answers, control = _ask_in_child(job, time_limit_s)
    else:
        from harness.evidence.behaviour_models import ask_here

        answers, control = ask_here(job, model, tokenizer)
    profile = _read_voice(voice)
    return BehaviourFacts(
        subject=path.name,
        prompts=prompts,
        answers=answers,
        control=control,
        max_new_tokens=max_new_tokens,
        exact=_exact(questions, answers),
        control_exact=_exact(questions, control),
        voice=_voices(profile, answers),
        control_voice=_voices(profile, control),
    )


_controls: dict[Job, Answers] = {}


def _ask_in_child(job: Job, time_limit_s: float) -> tuple[Answers, Answers | None]:
    """Ask checkpoint and base; a base is asked once for many checkpoints."""
    if job.base is None:
        return ask_in_child(job, time_limit_s)
    key = replace(job, path=job.base)
    answers, control = ask_in_child(job, time_limit_s, control=_controls.get(key))
    if control is not None:
        _controls[key] = control
    return answers, control


def to_json(facts: BehaviourFacts) -> dict[str, Any]:
    """Return the facts as plain JSON types."""
    value: dict[str, Any] = json.loads(json.dumps(asdict(facts), allow_nan=False))
    return value


def from_json(value: dict[str, Any]) -> BehaviourFacts:
    """Return the facts that `to_json` wrote.

    Raises:
        ValueError: the value is of another form.
    """
    try:
        fields = dict(value)
        for key in ("answers", "control"):
            if fields[key] is not None:
                fields[key] = Answers(**{k: _frozen(v) for k, v in fields[key].items()})
        return BehaviourFacts(**{key: _frozen(item) for key, item in fields.items()})
    except (KeyError, TypeError, AttributeError) as problem:
        raise ValueError(f"not the behaviour of a checkpoint: {problem}") from problem


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _read_stored(evidence: CheckpointEvidence) -> BehaviourFacts | None:
    """Return what the run measured, when it measured this very subject."""
    folder = evidence.options.run_folder
    if folder is None or not (folder / BEHAVIOUR_FILE).is_file():
        return None
    try:
        facts = from_json(read_object(folder / BEHAVIOUR_FILE))
    except (UnreadableJson, ValueError) as problem:
        raise Missing(f"{BEHAVIOUR_FILE} cannot be read: {problem}") from problem
    return facts if facts.subject == evidence.folder.name else None


def _read_quiz(path: Path | None) -> tuple[Question, ...]:
    if path is None:
        return ()
    try:
        return load_quiz(path)
    except UsageError as problem:
        raise Missing(f"the quiz cannot be used: {problem.message}") from problem


def _read_voice(path: Path | None) -> VoiceProfile | None:
    if path is None:
        return None
    try:
        return load_voice_profile(path)
    except UsageError as problem:
        raise Missing(f"the voice profile cannot be used: {problem.message}") from problem


def _voices(profile: VoiceProfile | None, answers: Answers | None) -> tuple[float, ...] | None:
    if profile is None or answers is None:
        return None
    return tuple(score_voice(text, profile) for text in answers.texts)


def _exact(questions: Sequence[Question], answers: Answers | None) -> tuple[bool, ...] | None:
    if answers is None:
        return None
    pairs = [(q, a) for q, a in zip(questions, answers.texts, strict=False) if q.kind == "fact"]
    return tuple(exact_match(text, question.answer) for question, text in pairs) or None
