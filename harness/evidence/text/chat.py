"""Evidence about what a chat template writes: rendered with short talks, and taken apart."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from harness.evidence.files.inventory import read_settings
from harness.evidence.source import CheckpointEvidence, provides
from harness.evidence.text.naming import text_of
from harness.evidence.text.render import Outcome, render
from harness.evidence.text.template import FILE, LIMIT_BYTES, list_templates
from harness.facts.chat import MARKER, Chat, Marker, Naming, Rendered, TemplatePlaces
from harness.facts.checkpoint import Files
from harness.facts.files import Manifest
from harness.registry import Missing, NotApplicable
from mudpuppy.provenance import hash_text

SYSTEM, QUESTION, ANSWER, NEXT = "Zebrawisdom", "Quokkaquestion", "Axolotlanswer", "Okapifollowup"
"""The words of each message: of letters alone, and such as no template writes by itself."""
MAIN = (FILE, "tokenizer_config.json", "chat_template.json")
"""Files whose template is used for chats, the one that counts first."""
SPEAKERS = re.compile(r"user|assistant|human|model|bot|instruction|response|question|answer", re.I)
"""Words with which heads of turns say who speaks."""
TURN_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<turn|>",
)
"""End tokens of chat models; those of base models end texts."""
_U, _A = {"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}
_S, _N = {"role": "system", "content": SYSTEM}, {"role": "user", "content": NEXT}
TALKS: Mapping[str, tuple[list[dict[str, Any]], bool]] = {
    "question": ([_U], True),
    "bare": ([_U], False),
    "answer": ([_U, _A], False),
    "history": ([_U, _A, _N], True),
    "system": ([_S, _U], True),
}
"""The conversations: messages, and whether a prompt for the answer is wanted."""


@provides("template_places")
def find_places(evidence: CheckpointEvidence) -> TemplatePlaces:
    """Return which templates are there, and what shows that one should be."""
    files: Files = evidence.get("files")
    if "tokenizer_config.json" not in files.names:
        raise NotApplicable("the folder holds no settings of a tokenizer")
    found = list(list_templates(evidence))
    naming: Naming | None = evidence.find("naming")
    manifest: Manifest | None = evidence.find("manifest")
    recorded = manifest.value.get("chat_template_hash") if manifest is not None else None
    base: CheckpointEvidence | None = evidence.find("base_evidence")
    theirs = [] if base is None or base.find("files") is None else list(list_templates(base))
    end = naming.chosen.get("eos_token", "") if naming is not None else ""
    return TemplatePlaces(
        files=tuple(file for file, _, _ in found),
        hashes=tuple(_hash(text) for _, _, text in found),
        recorded=recorded if isinstance(recorded, str) else "",
        base=theirs[0][0] if theirs else "",
        turn_end=end if end in TURN_ENDS else "",
    )


def _hash(text: str) -> str:
    """Return the hash that the engine records; empty for a text that no encoding has."""
    try:
        return hash_text(text)
    except UnicodeEncodeError:
        return ""  # half of a surrogate pair


@provides("base_begins")
def count_base_begins(evidence: CheckpointEvidence) -> tuple[int, int] | None:
    """Return how many begin tokens the base's template writes and its tokenizer adds, or None."""
    base: CheckpointEvidence | None = evidence.find("base_evidence")
    chat: Chat | None = None if base is None else base.find("chat")
    naming: Naming | None = None if base is None else base.find("naming")
    if chat is None or naming is None:
        return None
    return chat.begins, len([text for text in naming.begins if text == chat.begin])


@provides("renderings")
def render_templates(evidence: CheckpointEvidence) -> tuple[Rendered, ...]:
    """Return what every main template of the folder writes, the one that counts first.

    Raises:
        Missing: the special tokens that templates ask for are not known.
    """
    found = {file: text for file, name, text in list_templates(evidence) if _is_main(file, name)}
    if not found:
        raise NotApplicable("the folder holds no chat template")
    if sum(map(len, set(found.values()))) > LIMIT_BYTES:
        which = " and ".join(found)
        raise Missing(f"the template in {which} is longer than {LIMIT_BYTES:,} bytes")
    naming: Naming | None = evidence.find("naming")
    if naming is None:
        raise Missing("which special tokens the template means is not known: no tokenizer is here")
    files = sorted(found, key=MAIN.index)
    outcomes = render(tuple(found[file] for file in files), _ask(naming))
    return tuple(_gather(file, outcome) for file, outcome in zip(files, outcomes, strict=True))


def _is_main(file: str, name: str) -> bool:
    return file in MAIN and name in ("", "default")


def _ask(naming: Naming) -> str:
    """Return the conversations as templates see them, with content as text and as parts."""
    tokens = {
        key: text
        for key, value in naming.settings.items()
        if key.endswith("_token") and (text := text_of(value))
    }
    given = {**tokens, **naming.chosen, "tools": None, "documents": None}
    asked = {}
    for name, (messages, prompt) in TALKS.items():
        for suffix, form in (("", _plain), ("/parts", _in_parts)):
            asked[name + suffix] = {
                **given,
                "messages": [form(message) for message in messages],
                "add_generation_prompt": prompt,
            }
    return json.dumps(asked, sort_keys=True)


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    return message


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def _gather(file: str, outcome: Mapping[str, Outcome] | str) -> Rendered:
    """Return the renderings of one form of content: text, unless only parts come through."""
    if isinstance(outcome, str):
        return Rendered(file=file, texts={}, raised={}, problem=outcome)
    kind, said = outcome["question"]
    parts = outcome["question/parts"]
    works = kind == "text" and QUESTION in said
    suffix = "/parts" if not works and parts[0] == "text" and QUESTION in parts[1] else ""
    kinds = {name: outcome[name + suffix] for name in TALKS}
    return Rendered(
        file=file,
        texts={name: text for name, (kind, text) in kinds.items() if kind == "text"},
        raised={name: text for name, (kind, text) in kinds.items() if kind != "text"},
        refuses=frozenset(name for name, (kind, _) in kinds.items() if kind == "refused"),
    )


@provides("chat")
def take_apart(evidence: CheckpointEvidence) -> Chat:
    """Return how the template that loaders take writes a conversation."""
    first: Rendered = evidence.get("renderings")[0]
    naming: Naming = evidence.get("naming")
    if first.problem:
        return Chat(file=first.file, problem=first.problem)
    question = first.texts.get("question")
    if question is None:
        return Chat(
            file=first.file,
            problem=first.raised["question"] if "question" in first.refuses else "",
            raised="" if "question" in first.refuses else first.raised["question"],
        )
    begin = naming.chosen.get("bos_token", "")
    everything = "\n".join(first.texts.values())
    naming = _leave_out_split(evidence, naming, everything)
    return Chat(
        file=first.file,
        lost=tuple(_lost(first.texts)),
        begin=begin,
        begins=_count_begins(question, begin),
        markers=tuple(dict.fromkeys(_find_markers(everything, naming))),
        **_around_answer(first.texts, naming),
    )


def _lost(texts: Mapping[str, str]) -> Iterator[str]:
    if QUESTION not in texts["question"]:
        yield "user"
    history = texts.get("history")
    if history is not None and QUESTION in texts["question"]:
        if ANSWER not in history and ANSWER not in texts.get("answer", ""):
            yield "assistant"
        if QUESTION not in history or NEXT not in history:
            yield "earlier messages"
        if not _is_in_order(history) and ANSWER in history:
            yield "order"
        if _is_speaker_lost(history):
            yield "speakers"
    if texts["question"].count(QUESTION) > 1:
        yield "once"
    if SYSTEM not in texts.get("system", SYSTEM):
        yield "system"


def _is_in_order(history: str) -> bool:
    return 0 <= history.find(QUESTION) < history.find(ANSWER) < history.find(NEXT)


def _is_speaker_lost(history: str) -> bool:
    """Whether answers and questions have the same head although the heads name a speaker."""
    if not _is_in_order(history):
        return False
    after_question = history.partition(QUESTION)[2].partition(ANSWER)[0]
    after_answer = history.partition(ANSWER)[2].partition(NEXT)[0]
    return after_question == after_answer and SPEAKERS.search(after_answer) is not None


def _count_begins(text: str, begin: str) -> int:
    rest, count = text.lstrip(), 0
    while begin and rest.startswith(begin):
        rest, count = rest[len(begin) :].lstrip(), count + 1
    return count


def _around_answer(texts: Mapping[str, str], naming: Naming) -> dict[str, Any]:
    """Return what stands before and after an answer."""
    answer, history = texts.get("answer", ""), texts.get("history", "")
    found: dict[str, Any] = {}
    question = texts["question"]
    if ANSWER in answer and QUESTION in answer.partition(ANSWER)[0]:
        before, _, after = answer.rpartition(ANSWER)
        found["needed"] = before.rpartition(QUESTION)[2]
        found["given"] = question.rpartition(QUESTION)[2]
        found["has_prompt"] = question != texts.get("bare")
        found["ends"] = tuple(_find_markers(after, naming))
        found["knows_answer"] = True
    if ANSWER in history and NEXT in history.partition(ANSWER)[2]:
        between = history.partition(ANSWER)[2].partition(NEXT)[0]
        found["next_turn"] = next(_find_markers(between, naming), None)
    return found


def _leave_out_split(evidence: CheckpointEvidence, naming: Naming, written: str) -> Naming:
    """Return the naming without the ids of markers that are cut into pieces all the same."""
    files: Files = evidence.get("files")
    found = {one.text for one in _find_markers(written, naming) if one.number is not None}
    found -= naming.special
    if not found or "tokenizer.json" not in files.names:
        return naming
    split = find_split(read_settings(evidence, "tokenizer.json").get("model"), found)
    ids = {text: number for text, number in naming.ids.items() if text not in split}
    return replace(naming, ids=ids)


def find_split(model: Any, texts: Iterable[str]) -> frozenset[str]:
    """Return those of the texts that a BPE model has as tokens and never makes.

    Tokens that are not added are put together from pieces by the merges alone; one that no merge
    ends in has an id that no text gets.

    Args:
        model: `model` of tokenizer.json.
        texts: tokens of its vocabulary that are not added, of two letters at least.
    """
    if not isinstance(model, dict) or model.get("type") not in (None, "BPE"):
        return frozenset()
    merges = model.get("merges")
    # Where merges are passed over, a word that is in the vocabulary is looked up whole.
    if not isinstance(merges, list) or model.get("ignore_merges"):
        return frozenset()
    left = set(texts)
    for one in merges:
        whole = one.replace(" ", "", 1) if isinstance(one, str) else _joined(one)
        left.discard(whole)
    return frozenset(left)


def _joined(merge: Any) -> str:
    parts = merge if isinstance(merge, list) else ()
    return "".join(part for part in parts if isinstance(part, str))


def _find_markers(text: str, naming: Naming) -> Iterator[Marker]:
    """Yield the markers of a text in order: texts of their form, and named special tokens."""
    at = 0
    named = sorted({t for t in naming.chosen.values() if t}, key=len, reverse=True)
    while at < len(text):
        match = MARKER.match(text, at)
        token = next((t for t in named if text.startswith(t, at)), "")
        if match is not None and len(match[0]) > len(token):
            token = match[0]
        if token:
            yield Marker(text=token, number=naming.ids.get(token))
        at += len(token) or 1
