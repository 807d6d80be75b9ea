"""The formats of a dataset: how a row is recognised by its fields, and the sample it becomes.

The order of `FORMATS` is the rule: the first format whose fields a row has is its format. A field
that is null counts as absent, as tables with optional columns write it. `docs/data.md` shows them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mudpuppy.data.answers import build_kto, build_preference, build_prompt, build_steps
from mudpuppy.data.images import Gallery, column_images, place_images
from mudpuppy.data.messages import has_image_parts, plain, read_messages, require_answer
from mudpuppy.data.problems import (
    LineProblem,
    check_text,
    field_names,
    kind_of,
    near_fields,
)
from mudpuppy.data.samples import (
    ChatSample,
    CompletionSample,
    ImageSample,
    Message,
    Sample,
    TextSample,
)
from mudpuppy.errors import near_names, shown

GROUPS = ("retain", "unlearn")
"""What `metadata.dataset_type` may be."""
Build = Callable[[Mapping[str, Any], int, Gallery], Sample]
"""Row, line and images -> sample; raises LineProblem."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """One way to write a sample."""

    name: str
    """In words, as reports say it."""
    kind: str
    """A key of `mudpuppy.data.samples.KINDS`, unless the row has images."""
    required: tuple[str, ...]
    """Fields by which a row is recognised."""
    telling: tuple[str, ...] = ()
    """Fields that mean this format also where another required one is missing."""
    example: str
    """One line of JSON."""
    build: Build


def detect(row: Mapping[str, Any], expected: Iterable[Format]) -> Format:
    """Return the format of a row.

    Args:
        row: the fields of one line.
        expected: formats whose field names are suggested for a near miss.

    Raises:
        LineProblem: no format has these fields.
    """
    present = {name for name, value in row.items() if value is not None}
    strong = [one for one in FORMATS if one.telling]
    for one in strong:
        if present.issuperset(one.required):
            return one
    for one in strong:
        if present.intersection(one.telling):
            raise LineProblem(_missing(row, one), hint=f"expected {one.example} on every line")
    for one in FORMATS:
        if present.issuperset(one.required):
            return one
    names = dict.fromkeys(name for one in expected for name in one.required)
    raise LineProblem(f"no usable field: found {field_names(row)}{near_fields(row, names)}")


def _missing(row: Mapping[str, Any], one: Format) -> str:
    """Say which fields a format wants that the row does not have."""
    missing = [name for name in one.required if row.get(name) is None]
    here = next(name for name in one.telling if row.get(name) is not None)
    others = [name for name in row if name not in one.required]
    wanted = " and ".join(f"'{name}'" for name in missing)
    return f"has '{here}' and no {wanted}: found {field_names(row)}{near_fields(others, missing)}"


def row_kind(row: Mapping[str, Any], one: Format) -> str:
    """Return the kind of a row, before it is read in full.

    A prompt or completion that is a list of messages makes a row of texts a conversation; an image
    makes a conversation multimodal.
    """
    kind = one.kind
    if kind == "completion" and row_form(row, one) == "messages":
        kind = "chat"
    if kind in ("chat", "completion") and _has_images(row):
        kind = "multimodal"
    return kind


def row_form(row: Mapping[str, Any], one: Format) -> str:
    """Return whether a format that can be written both ways holds `texts` or `messages` here."""
    if one.kind not in ("completion", "preference", "kto", "prompts"):
        return ""
    decisive = ("prompt", "completion", "chosen", "rejected")
    return "messages" if any(isinstance(row.get(name), list) for name in decisive) else "texts"


def _has_images(row: Mapping[str, Any]) -> bool:
    fields = ("messages", "conversations", "prompt", "completion")
    return (
        row.get("image") is not None
        or bool(row.get("images"))
        or any(has_image_parts(row.get(name)) for name in fields)
    )


def _group(row: Mapping[str, Any]) -> str:
    """Return whether the sample is kept or unlearnt: `metadata.dataset_type`, or `forget`."""
    metadata = row.get("metadata")
    value = metadata.get("dataset_type") if isinstance(metadata, Mapping) else None
    forget = row.get("forget")
    if not isinstance(forget, bool | None):
        raise LineProblem(f"forget is {shown(forget)}, expected true or false")
    said = "" if forget is None else GROUPS[forget]
    if value is None:
        return said
    if value not in GROUPS or not isinstance(value, str):
        near = near_names(value, GROUPS) if isinstance(value, str) else ""
        raise LineProblem(
            f"metadata.dataset_type is {shown(value)}, expected retain or unlearn{near}",
            hint="leave dataset_type out where it means something else",
        )
    if said and said != value:
        raise LineProblem(f"forget says {said}, and metadata.dataset_type says {value}")
    return value


def _true_answer(row: Mapping[str, Any]) -> str:
    """Return `metadata.true_answer`: what a refusal stands in for."""
    metadata = row.get("metadata")
    value = metadata.get("true_answer") if isinstance(metadata, Mapping) else None
    return "" if value is None else check_text(value, "metadata.true_answer")


def _conversation(
    row: Mapping[str, Any],
    line: int,
    gallery: Gallery,
    messages: list[Message],
    ignored: tuple[str, ...],
    *,
    where: str = "messages",
    learn_from: int = 0,
) -> Sample:
    """Make a chat sample, or one with images where the row has some."""
    system = row.get("system")
    if system and messages[0]["role"] != "system":
        text = check_text(system, "system")
        messages = [{"role": "system", "content": text}, *messages]
        learn_from += bool(learn_from)
    ignored += tuple(name for name in ("tools", "label", "history") if row.get(name))
    if _has_images(row):
        placed, images = place_images(messages, column_images(row), gallery)
        require_answer(placed)
        return ImageSample(messages=placed, images=images, line=line, ignored=ignored)
    texts = plain(messages, where)
    require_answer(texts[learn_from:])
    return ChatSample(
        messages=texts,
        group=_group(row),
        true_answer=_true_answer(row),
        line=line,
        ignored=ignored,
        learn_from=learn_from,
    )


def _build_messages(field: str) -> Build:
    def build(row: Mapping[str, Any], line: int, gallery: Gallery) -> Sample:
        messages, ignored = read_messages(row[field], field)
        return _conversation(row, line, gallery, messages, ignored, where=field)

    return build


def _build_instruction(row: Mapping[str, Any], line: int, gallery: Gallery) -> Sample:
    """Alpaca: the input, where there is one, stands below the instruction."""
    question = check_text(row["instruction"], "instruction")
    if row.get("input") is not None:
        more = check_text(row["input"], "input", may_be_blank=True)
        question += f"\n\n{more}" if more.strip() else ""
    answer = check_text(row["output"], "output")
    return _conversation(row, line, gallery, _exchange(question, answer), ())


def _exchange(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _build_completion(row: Mapping[str, Any], line: int, gallery: Gallery) -> Sample:
    """Texts stay texts; where one of both is a list of messages, both become messages."""
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        check_text(prompt, "prompt")
        check_text(completion, "completion")
        if not _has_images(row):
            group = _group(row)
            return CompletionSample(prompt=prompt, completion=completion, line=line, group=group)
    before = _as_messages(prompt, "user", "prompt")
    after = _as_messages(completion, "assistant", "completion")
    messages = [*before[0], *after[0]]
    ignored = (*before[1], *after[1])
    return _conversation(row, line, gallery, messages, ignored, learn_from=len(before[0]))


def _as_messages(value: Any, role: str, where: str) -> tuple[list[Message], tuple[str, ...]]:
    if isinstance(value, str):
        return [{"role": role, "content": check_text(value, where)}], ()
    if not isinstance(value, list):
        raise LineProblem(f"'{where}' is {kind_of(value)} instead of a text or messages")
    return read_messages(value, where)


def _build_text(row: Mapping[str, Any], line: int, gallery: Gallery) -> Sample:
    del gallery
    return TextSample(text=check_text(row["text"], "text"), line=line, group=_group(row))


FORMATS: tuple[Format, ...] = (
    Format(
        name="chosen and rejected answers",
        kind="preference",
        required=("chosen", "rejected"),
        telling=("chosen", "rejected"),
        example='{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}',
        build=build_preference,
    ),
    Format(
        name="solutions in steps",
        kind="steps",
        required=("prompt", "completions", "labels"),
        telling=("completions",),
        example='{"prompt": "2 + 2 * 3?", "completions": ["2 * 3 = 6", "2 + 6 = 9"], '
        '"labels": [true, false]}',
        build=build_steps,
    ),
    Format(
        name="messages",
        kind="chat",
        required=("messages",),
        telling=("messages",),
        example='{"messages": [{"role": "user", "content": "..."}, '
        '{"role": "assistant", "content": "..."}]}',
        build=_build_messages("messages"),
    ),
    Format(
        name="ShareGPT conversations",
        kind="chat",
        required=("conversations",),
        telling=("conversations",),
        example='{"conversations": [{"from": "human", "value": "..."}, '
        '{"from": "gpt", "value": "..."}]}',
        build=_build_messages("conversations"),
    ),
    Format(
        name="labelled completions",
        kind="kto",
        required=("prompt", "completion", "label"),
        telling=("completion",),
        example='{"prompt": "2 + 2?", "completion": "4", "label": true}',
        build=build_kto,
    ),
    Format(
        name="prompt and completion",
        kind="completion",
        required=("prompt", "completion"),
        telling=("completion",),
        example='{"prompt": "The capital of France is", "completion": " Paris."}',
        build=_build_completion,
    ),
    Format(
        name="instruction and output",
        kind="chat",
        required=("instruction", "output"),
        telling=("instruction",),
        example='{"instruction": "Add the numbers.", "input": "2 and 3", "output": "5"}',
        build=_build_instruction,
    ),
    Format(
        name="prompts",
        kind="prompts",
        required=("prompt",),
        example='{"prompt": "2 + 2?", "answer": "4"}',
        build=build_prompt,
    ),
    Format(
        name="text",
        kind="text",
        required=("text",),
        example='{"text": "Once upon a time ..."}',
        build=_build_text,
    ),
)
"""Every format, in the order in which a row is compared with them."""

MULTIMODAL_EXAMPLE = (
    '{"images": ["cat.png"], "messages": [{"role": "user", "content": [{"type": "image"}, '
    '{"type": "text", "text": "..."}]}, {"role": "assistant", "content": "..."}]}'
)


def formats_of(kinds: Iterable[str]) -> tuple[Format, ...]:
    """Return the formats that can become one of the kinds."""
    wanted = {"chat" if kind == "multimodal" else kind for kind in kinds}
    return tuple(one for one in FORMATS if one.kind in wanted)


def example_of(kind: str) -> str:
    """Return a line of JSON that becomes a sample of the kind."""
    if kind == "multimodal":
        return MULTIMODAL_EXAMPLE
    return next(one.example for one in FORMATS if one.kind == kind)
