"""Evidence about behaviour: what a checkpoint and its base answer to the same prompts, greedily.

The models are loaded and asked in a child process (`behaviour_child`), so that a model that hangs,
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
from harness.evidence.lineage.base import read_origin
from harness.evidence.source import TIME_LIMIT_S, CheckpointEvidence, Options, provides
from harness.facts.behaviour import BehaviourFacts
from harness.facts.checkpoint import Adapter, Base, Files
from harness.facts.forward import Consistency, Forwards, Logits
from harness.registry import ControlFailed, Missing, NotApplicable
from mudpuppy.scoring import Question, VoiceProfile

BEHAVIOUR_FILE = "behaviour.json"
"""Where a matrix cell keeps what was measured, in its run folder."""
MAX_NEW_TOKENS = 48
"""Longest answer."""


@provides("asked")
def ask_models(evidence: CheckpointEvidence) -> Asked:
    """Load the checkpoint and its base and ask them, once for all probes; only with --generate."""
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
    merged: Adapter | None = evidence.find("merged_adapter")
    options.progress(f"asking {evidence.folder} (at most {options.time_limit_s:g} s)")
    quiz, voice = _find_questions(evidence, folder)
    job = make_job(
        evidence.folder,
        folder,
        read_quiz(quiz),
        asks_all=quiz is not None or voice is not None,
        against=options.against,
        adapter=None if merged is None or folder is None else Path(merged.root),
        compares=True,
        time_limit_s=options.time_limit_s,
    )
    return _ask_once(job, in_process=options.in_process, progress=options.progress)


@provides("behaviour")
def give_behaviour(evidence: CheckpointEvidence) -> BehaviourFacts:
    """Return what was measured in the run, or measure it when asked to generate."""
    stored = _read_stored(evidence)
    if stored is not None:
        return stored
    asked: Asked = evidence.get("asked")
    if asked.answers is None:
        raise _why_silent(asked)
    base: Base | None = evidence.find("base")
    quiz, voice = _find_questions(evidence, None if base is None else Path(base.root))
    return _judge(
        evidence.folder.name,
        asked,
        read_quiz(quiz),
        read_voice(voice),
        MAX_NEW_TOKENS,
        evidence.options.embeddings,
        is_chat=evidence.find("templates") is not None,
    )


@provides("forward")
def give_forward(evidence: CheckpointEvidence) -> Forwards:
    """Return what one forward pass of the checkpoint and of its base showed."""
    asked: Asked = evidence.get("asked")
    if asked.forward is None:
        raise _why_silent(asked)
    base: Base | None = evidence.find("base")
    quiz, _ = _find_questions(evidence, None if base is None else Path(base.root))
    return Forwards(
        mine=asked.forward,
        base=asked.control_forward,
        divergence=asked.divergence,
        from_quiz=quiz is not None,
    )


def _why_silent(asked: Asked) -> Missing:
    """Return why a checkpoint said nothing: it never does, or it could not be asked."""
    scores = asked.consistency is not None and asked.consistency.kind == "scorer"
    return (NotApplicable if scores else Missing)(asked.why_silent)


@provides("consistency")
def give_consistency(evidence: CheckpointEvidence) -> Consistency:
    """Return the comparisons of the checkpoint with itself and its relatives."""
    asked: Asked = evidence.get("asked")
    assert asked.consistency is not None
    return asked.consistency


@provides("any_forward")
def give_any_forward(evidence: CheckpointEvidence) -> Forwards | None:
    """Return the forward passes, or None where a run has stored its answers alone."""
    found: Forwards | None = evidence.find("forward")
    return found


@provides("logits")
def count_logits(evidence: CheckpointEvidence) -> Logits:
    """Return how many prompts have logits that are not finite, also where nothing was said."""
    facts: BehaviourFacts | None = evidence.find("behaviour")
    compared: Consistency | None = evidence.find("consistency")
    if facts is None and compared is None:
        evidence.get("behaviour")  # says why
    return Logits(
        rows=0 if facts is None else len(facts.prompts),
        bad=0 if facts is None else facts.answers.nonfinite_logits,
        compared=0 if compared is None else compared.prompts,
        by_kernel={} if compared is None else compared.nonfinite,
    )


def _find_questions(
    evidence: CheckpointEvidence, base: Path | None
) -> tuple[Path | None, Path | None]:
    """Return quiz and voice profile: those that were named, or such as lie beside the models."""
    options = evidence.options
    quiz = options.quiz or find_file("quiz.jsonl", evidence.folder, base)
    return quiz, options.voice or find_file("voice.yaml", evidence.folder, base)


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
        asked = _ask_once(job)
    else:
        from harness.evidence.behaviour.session import ask_loaded

        asked = ask_loaded(job, model, tokenizer)
    if asked.answers is None:
        raise ControlFailed(f"{path.name} could not be asked: {asked.why_silent}")
    return _judge(path.name, asked, questions, profile, max_new_tokens)


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


def _judge(
    name: str,
    asked: Asked,
    questions: Sequence[Question],
    profile: VoiceProfile | None,
    max_new_tokens: int,
    embeddings: Path | None = None,
    **about: Any,
) -> BehaviourFacts:
    """Score the answers."""
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


def _ask_once(
    job: Job,
    *,
    in_process: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> Asked:
    """Ask checkpoint and base; a base is asked once for many checkpoints."""
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
