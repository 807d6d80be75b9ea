"""Preference pairs from a voice profile: the same content with the voice and without it.

Three sources, tried in this order for each question of the SFT data: two answers to it, of which
one keeps the voice and one does not; one answer, of which the clauses that carry the voice are
taken off; and, with a model, what the model itself says. The same input gives the same pairs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mudpuppy.agreement import token_f1
from mudpuppy.data.read import read_dataset
from mudpuppy.data.samples import ChatSample, CompletionSample, Sample, text_of
from mudpuppy.errors import UsageError
from mudpuppy.files import write_text_atomic
from mudpuppy.pipelines.curriculum.plan import Curriculum, Topic
from mudpuppy.pipelines.curriculum.state import Point
from mudpuppy.scoring import VoiceProfile, normalise, score_voice

LEAST_GAP = 0.3
"""Least difference between the voices of the two answers of a pair."""
LEAST_KEPT = 0.4
"""Least share of an answer's words (F1) that must be left without its voice."""
MOST_VOICE = 0.5
"""Most of an answer's voice that may be left without it."""
_CLAUSE = re.compile(r"[^,;:.!?]+[,;:.!?]*\s*")


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A question and how it may be answered."""

    prompt: tuple[dict[str, str], ...]
    """The conversation so far."""
    answers: tuple[str, ...]
    """Every answer that the data have to it."""


def read_exchanges(samples: Iterable[Sample]) -> list[Exchange]:
    """Return the questions of a dataset in order, each once, with all of its answers.

    Raises:
        UsageError: a sample is no conversation, or begins with its answer.
    """
    found: dict[str, tuple[tuple[dict[str, str], ...], list[str]]] = {}
    for sample in samples:
        prompt, answer = _split(sample)
        key = json.dumps([[one["role"], normalise(one["content"])] for one in prompt])
        answers = found.setdefault(key, (prompt, []))[1]
        if answer not in answers:
            answers.append(answer)
    return [Exchange(prompt=prompt, answers=tuple(said)) for prompt, said in found.values()]


def _split(sample: Sample) -> tuple[tuple[dict[str, str], ...], str]:
    """Return what comes before the last answer of a sample, and that answer."""
    if isinstance(sample, CompletionSample):
        return ({"role": "user", "content": sample.prompt},), sample.completion.strip()
    if not isinstance(sample, ChatSample) or sample.messages[-1]["role"] != "assistant":
        raise UsageError(
            f"line {sample.line}: pairs are made from conversations that end with an answer",
            hint="docs/data.md shows the forms of a dataset",
        )
    if len(sample.messages) < 2:
        raise UsageError(
            f"line {sample.line}: there is an answer and no question",
            hint="begin the conversation with what the user asks",
        )
    turns = tuple({"role": str(m["role"]), "content": text_of(m)} for m in sample.messages)
    return turns[:-1], turns[-1]["content"]


def make_pairs(
    exchanges: Sequence[Exchange],
    profile: VoiceProfile,
    said: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Return preference rows: chosen keeps the voice, rejected says the same without it.

    Args:
        exchanges: questions with their answers.
        profile: the voice.
        said: what a model answers to each question; where its voice is worse than the chosen
            answer's, that is what is rejected.

    Returns:
        Rows of `prompt`, `chosen` and `rejected`, each a list of messages; questions of which
        nothing can be made are left out.
    """
    rows = []
    for place, exchange in enumerate(exchanges):
        others = list(exchange.answers) if said is None else [said[place]]
        chosen = max(exchange.answers, key=lambda text: score_voice(text, profile))
        if said is None:
            others.append(without_voice(chosen, profile))
        rejected = _pick_rejected(chosen, others, profile)
        if rejected is None:
            continue
        rows.append(
            {
                "prompt": list(exchange.prompt),
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
            }
        )
    return rows


def _pick_rejected(chosen: str, others: Sequence[str], profile: VoiceProfile) -> str | None:
    """Return the answer whose voice is worst, where it is worse by enough; else None."""
    best = score_voice(chosen, profile)
    worse = [
        text
        for text in others
        if text.strip()
        and normalise(text) != normalise(chosen)
        and best - score_voice(text, profile) >= LEAST_GAP
    ]
    return min(worse, key=lambda text: score_voice(text, profile), default=None)


def without_voice(text: str, profile: VoiceProfile) -> str:
    """Return an answer without the clauses that carry its voice; empty where that cannot be.

    A clause ends at a comma, a semicolon, a colon or the end of a sentence. It carries the voice
    if the answer's score falls when it is taken off.
    """
    kept = dict(enumerate(_CLAUSE.findall(text.strip())))
    for place in tuple(kept):
        rest = {n: clause for n, clause in kept.items() if n != place}
        if rest and score_voice(_join(rest), profile) < score_voice(_join(kept), profile):
            kept = rest
    plain = _join(kept)
    is_left = token_f1(plain, text) >= LEAST_KEPT
    is_plain = score_voice(plain, profile) <= MOST_VOICE * score_voice(text, profile)
    return plain if is_left and is_plain else ""


def _join(clauses: Mapping[int, str]) -> str:
    """Return clauses as one sentence, with a capital at its start and a full stop at its end."""
    text = "".join(clauses.values()).strip().rstrip(",;: ")
    if text and text[-1] not in ".!?":
        text += "."
    return text[:1].upper() + text[1:]


def pairs_of(
    path: Path, profile: VoiceProfile, said: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return the rows made from a dataset, and of how many questions.

    Raises:
        DatasetError: the dataset cannot be read.
        UsageError: it holds no conversations.
    """
    exchanges = read_exchanges(read_dataset(path, "lora").samples)
    rows = make_pairs(exchanges, profile, said)
    return {"rows": rows, "samples": len(exchanges)}


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as JSONL, atomically."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    write_text_atomic(path, "".join(f"{line}\n" for line in lines))


def ask_and_pair(path: Path, profile: VoiceProfile, model: str) -> dict[str, Any]:
    """Return the rows made from a dataset and from what a model says to its questions.

    Raises:
        DatasetError: the dataset cannot be read.
        ModelError: the model cannot be opened.
        UsageError: the dataset holds no conversations.
    """
    from mudpuppy.pipelines.curriculum.stages import ask_model

    exchanges = read_exchanges(read_dataset(path, "lora").samples)
    asked = plain_questions(exchanges)
    said = ask_model(model, None, [one.prompt[0]["content"] for one in asked])
    texts = [text for text, _ in said]
    return {"rows": make_pairs(asked, profile, texts), "samples": len(exchanges)}


def plain_questions(exchanges: Sequence[Exchange]) -> list[Exchange]:
    """Return those that are one question and nothing before it.

    A model is asked one question at a time: what it says to the last turn of a longer conversation
    alone would be rejected for an answer to something else.
    """
    return [one for one in exchanges if [turn["role"] for turn in one.prompt] == ["user"]]


def write_pairs(
    made: Curriculum, topic: Topic, path: Path, point: Point, *, own: bool
) -> dict[str, Any]:
    """Write the pairs of a topic, and return how many there are and of how many questions.

    Args:
        made: the curriculum.
        topic: the topic.
        path: file for the pairs.
        point: the model, for pairs of its own answers.
        own: whether what the model says is rejected, in place of answers without a voice.
    """
    assert made.profile is not None
    if own:
        from mudpuppy.pipelines.curriculum.stages import ask_prompts

        exchanges = read_exchanges(read_dataset(topic.sft, "lora").samples)
        asked = plain_questions(exchanges)
        said = ask_prompts(made, point, [one.prompt[0]["content"] for one in asked])
        rows = make_pairs(asked, made.profile, said)
        found: dict[str, Any] = {"rows": rows, "samples": len(exchanges)}
    else:
        found = pairs_of(topic.sft, made.profile)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(path, found["rows"])
    return {"pairs": len(found["rows"]), "samples": found["samples"]}
