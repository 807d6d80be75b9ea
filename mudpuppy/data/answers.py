"""Answers that are judged: pairs, labelled answers, steps, and prompts whose answers are rewarded.

The fields are those of TRL's dataset formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mudpuppy.data.images import Gallery
from mudpuppy.data.messages import has_image_parts, plain, read_messages
from mudpuppy.data.problems import LineProblem, check_text, check_tree, kind_of
from mudpuppy.data.samples import (
    Conversation,
    LabelledSample,
    Message,
    PreferenceSample,
    PromptSample,
    Sample,
    StepsSample,
)
from mudpuppy.errors import shown

IDENTICAL = "'chosen' and 'rejected' are the same: there is nothing to learn"


def _refuse_images(row: Mapping[str, Any]) -> None:
    names = ("prompt", "chosen", "rejected", "completion")
    if (
        row.get("image") is not None
        or row.get("images")
        or any(has_image_parts(row.get(name)) for name in names)
    ):
        raise LineProblem(
            "has images, which are learnt from conversations only",
            hint="write 'messages' with images for --method multimodal",
        )


def _messages(value: Any, where: str) -> tuple[Conversation, tuple[str, ...]]:
    messages, ignored = read_messages(value, where)
    return plain(messages, where), ignored


def _answer(value: Any, where: str) -> tuple[Conversation, tuple[str, ...]]:
    """Return an answer as messages; a text is what the assistant says."""
    if isinstance(value, str):
        return ({"role": "assistant", "content": check_text(value, where)},), ()
    return _messages(value, where)


def _prompt(value: Any) -> tuple[Conversation, tuple[str, ...]]:
    """Return a prompt as messages; a text is what the user says."""
    if isinstance(value, str):
        return ({"role": "user", "content": check_text(value, "prompt")},), ()
    return _messages(value, "prompt")


def build_preference(row: Mapping[str, Any], line: int, gallery: Gallery) -> Sample:
    """Two answers; without a prompt, what both begin with is the prompt.

    A prompt that the answers repeat at their start, as some hub datasets do, is taken once.
    """
    del gallery
    _refuse_images(row)
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise LineProblem(
            f"'chosen' is {kind_of(chosen)} and 'rejected' is {kind_of(rejected)}: both are texts, "
            "or both are messages"
        )
    if chosen == rejected:
        raise LineProblem(IDENTICAL)
    if isinstance(chosen, str) and not isinstance(prompt, list):
        return _pair_of_texts(prompt, chosen, rejected, line)
    better, ignored = _answer(chosen, "chosen")
    worse, more = _answer(rejected, "rejected")
    start: Conversation = ()
    if prompt is not None:
        start, third = _prompt(prompt)
        ignored += third
    start, better, worse = _split_messages(start, better, worse, has_prompt=prompt is not None)
    for answer, where in ((better, "chosen"), (worse, "rejected")):
        _require_reply(answer, where)
    if better == worse:
        raise LineProblem(IDENTICAL)
    return PreferenceSample(
        prompt=start, chosen=better, rejected=worse, line=line, ignored=(*ignored, *more)
    )


def _pair_of_texts(prompt: Any, chosen: str, rejected: Any, line: int) -> Sample:
    check_text(chosen, "chosen")
    check_text(rejected, "rejected")
    if prompt is not None:
        check_text(prompt, "prompt")
        return PreferenceSample(prompt=prompt, chosen=chosen, rejected=rejected, line=line)
    cut = _shared_words(chosen, rejected)
    for text, where in ((chosen, "chosen"), (rejected, "rejected")):
        if not text[cut:].strip():
            raise LineProblem(f"'{where}' holds nothing but what both answers begin with")
    return PreferenceSample(
        prompt=chosen[:cut], chosen=chosen[cut:], rejected=rejected[cut:], line=line
    )


def _shared_words(one: str, other: str) -> int:
    """Return the characters that both texts begin with, without a word cut in two.

    The space before the first word that differs belongs to the answers, as tokenizers have it.
    """
    pairs = zip(one, other, strict=False)
    shared = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
    if one[shared : shared + 1].isspace() or other[shared : shared + 1].isspace():
        return shared
    while shared and not one[shared - 1].isspace():
        shared -= 1
    return shared - 1 if shared and one[shared - 1] == " " else shared


def _split_messages(
    start: Conversation, better: Conversation, worse: Conversation, *, has_prompt: bool
) -> tuple[Conversation, Conversation, Conversation]:
    """Return the prompt and what each answer adds to it."""
    size = len(start)
    if has_prompt and better[:size] == start and worse[:size] == start:
        better, worse = better[size:], worse[size:]
    opening: list[Message] = []
    for one, other in zip(better, worse, strict=False):
        if one != other:
            break
        opening.append(one)
    if not (start or opening):
        raise LineProblem("'chosen' and 'rejected' share no message that could be the prompt")
    cut = len(opening)
    return (*start, *opening), better[cut:], worse[cut:]


def _require_reply(answer: Conversation, where: str) -> None:
    if not answer or answer[-1]["role"] != "assistant" or not answer[-1]["content"].strip():
        raise LineProblem(f"'{where}' does not end with an assistant message that has a text")


def build_kto(row: Mapping[str, Any], line: int, gallery: Gallery) -> Sample:
    """One answer, and whether it is a good one."""
    del gallery
    _refuse_images(row)
    prompt, completion = row["prompt"], row["completion"]
    label = _truth(row["label"], "label")
    if isinstance(prompt, str) and isinstance(completion, str):
        check_text(prompt, "prompt")
        check_text(completion, "completion")
        return LabelledSample(prompt=prompt, completion=completion, label=label, line=line)
    start, ignored = _prompt(prompt)
    answer, more = _answer(completion, "completion")
    _require_reply(answer, "completion")
    return LabelledSample(
        prompt=start, completion=answer, label=label, line=line, ignored=(*ignored, *more)
    )


def _truth(value: Any, where: str) -> bool:
    if isinstance(value, bool) or (type(value) is int and value in (0, 1)):
        return bool(value)
    found = shown(value) if isinstance(value, str | int | float) else kind_of(value)
    raise LineProblem(f"{where} is {found}, expected true or false (or 1 or 0)")


def build_steps(row: Mapping[str, Any], line: int, gallery: Gallery) -> Sample:
    """A solution in steps, each with its own label."""
    del gallery
    _refuse_images(row)
    prompt = check_text(row["prompt"], "prompt")
    steps, labels = row["completions"], row["labels"]
    for value, name in ((steps, "completions"), (labels, "labels")):
        if not isinstance(value, list) or not value:
            raise LineProblem(f"'{name}' is {kind_of(value)} instead of a list, one entry a step")
    if len(steps) != len(labels):
        raise LineProblem(f"has {len(steps)} completions and {len(labels)} labels")
    return StepsSample(
        prompt=prompt,
        steps=tuple(check_text(one, f"completions[{i}]") for i, one in enumerate(steps)),
        labels=tuple(_truth(one, f"labels[{i}]") for i, one in enumerate(labels)),
        line=line,
    )


def build_prompt(row: Mapping[str, Any], line: int, gallery: Gallery) -> Sample:
    """A prompt to be answered; all other columns go to the reward functions."""
    del gallery
    _refuse_images(row)
    prompt = row["prompt"]
    given = {name: one for name, one in row.items() if name != "prompt" and one is not None}
    fields = {name: check_tree(one, name) for name, one in given.items()}
    if isinstance(prompt, str):
        text = check_text(prompt, "prompt")
        return PromptSample(prompt=text, fields=fields, line=line)
    messages, ignored = _messages(prompt, "prompt")
    return PromptSample(prompt=messages, fields=fields, line=line, ignored=ignored)
