"""The evidence that models give when they are asked, and why there is none when nobody asked them.

What asks and scores is imported only then: it takes longer than a diagnosis of files alone takes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.evidence.source import CheckpointEvidence, Options, provides
from harness.registry import Missing, NotApplicable

if TYPE_CHECKING:
    from harness.evidence.behaviour.child import Asked
    from harness.facts.behaviour import BehaviourFacts
    from harness.facts.checkpoint import Adapter, Base, Files
    from harness.facts.forward import Consistency, Forwards, Logits

BEHAVIOUR_FILE = "behaviour.json"
"""Where a matrix cell keeps what was measured, in its run folder."""


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
    adapter: Adapter | None = evidence.find("adapter")
    base: Base | None = evidence.find("base")
    if adapter is not None and base is None and not files.weights:
        raise Missing("an adapter needs its base to answer; pass --base PATH")
    from harness.evidence.behaviour.answers import read_quiz
    from harness.evidence.behaviour.behaviour import ask_once, make_job

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
    return ask_once(job, in_process=options.in_process, progress=options.progress)


@provides("behaviour")
def give_behaviour(evidence: CheckpointEvidence) -> BehaviourFacts:
    """Return what was measured in the run, or measure it when asked to generate."""
    stored = _find_stored(evidence)
    if stored is not None:
        return stored
    asked: Asked = evidence.get("asked")
    if asked.answers is None:
        raise _why_silent(asked)
    from harness.evidence.behaviour.answers import read_quiz, read_voice
    from harness.evidence.behaviour.behaviour import MAX_NEW_TOKENS, judge

    base: Base | None = evidence.find("base")
    quiz, voice = _find_questions(evidence, None if base is None else Path(base.root))
    return judge(
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
    from harness.facts.forward import Forwards

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
    from harness.facts.forward import Logits

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
    from harness.evidence.behaviour.behaviour import find_file

    options = evidence.options
    quiz = options.quiz or find_file("quiz.jsonl", evidence.folder, base)
    return quiz, options.voice or find_file("voice.yaml", evidence.folder, base)


def _find_stored(evidence: CheckpointEvidence) -> BehaviourFacts | None:
    """Return what the run measured, when it measured this very subject."""
    folder = evidence.options.run_folder
    if folder is None or not (folder / BEHAVIOUR_FILE).is_file():
        return None
    from harness.evidence.behaviour.behaviour import read_stored

    return read_stored(folder / BEHAVIOUR_FILE, evidence.folder.name)
