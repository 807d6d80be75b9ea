"""The rows that a dataset makes, read and rendered here without the engine's code.

Where the engine takes the label mask from the template's generation tags, here an answer is what
the template adds to the conversation before it; both must give the same rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoProcessor, AutoTokenizer

from harness.twin.asked import PAIRED, Asked
from harness.twin.rows import IGNORED, Answer, Row

STEP_END = "\n"
"""What ends the prompt and every step of a solution."""


class NotRendered(Exception):
    """A sample has a form that is not rendered here; the message says which."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """A dataset as rows."""

    rows: tuple[Row, ...]
    """Rows in the order of the file; those with nothing to learn are left out."""
    columns: tuple[Mapping[str, Any], ...]
    """The record that each row came from."""
    tokenizer: Any
    """What the texts were read with."""
    eos_ids: frozenset[int]
    """Ids that end a turn."""
    max_length: int
    """Tokens that a row may have."""


def make_rows(asked: Asked, base: str) -> Made:
    """Read and render the dataset of a cell.

    Raises:
        NotRendered: the dataset has a form that is not known here.
    """
    maker = _Maker(asked, base)
    path = asked.dataset_path
    if path.suffix != ".jsonl" or not path.is_file():
        raise NotRendered(f"{path.name} is no JSONL file")
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    pairs = [(row, record) for record in records for row in maker.render(record)]
    return Made(
        rows=tuple(row for row, _ in pairs),
        columns=tuple(record for _, record in pairs),
        tokenizer=maker.tokenizer,
        eos_ids=maker.eos_ids,
        max_length=maker.limit,
    )


class _Maker:
    """Renders records with the base's own tokenizer."""

    def __init__(self, asked: Asked, base: str) -> None:
        self.asked = asked
        self.processor: Any = None
        self.image_id: int | None = None
        if asked.method == "multimodal":
            self.processor = AutoProcessor.from_pretrained(base)
            self.tokenizer = self.processor.tokenizer
            self.image_id = self.tokenizer.convert_tokens_to_ids(self.processor.image_token)
        else:
            self.tokenizer = AutoTokenizer.from_pretrained(base)
        config = AutoConfig.from_pretrained(base)
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        self.limit = min(asked.max_length, positions or asked.max_length)
        self.eos_ids = _find_ends(base, config, self.tokenizer)

    def render(self, record: Mapping[str, Any]) -> Iterator[Row]:
        """Yield the rows of one record; none where nothing fits.

        Raises:
            NotRendered: the record has a form that is not known here.
        """
        record = _instructed(record, self.asked.settings.get("system_prompt"))
        for form, make in _FORMS.items():
            if set(form) <= set(record):
                yield from make(self, record)
                return
        raise NotRendered(f"a record with the fields {', '.join(sorted(record))}")

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _start(self) -> list[int]:
        """Return the BOS that the tokenizer writes by itself."""
        ids = list(self.tokenizer("")["input_ids"])
        return ids[:1] if ids and ids[0] == self.tokenizer.bos_token_id else []

    def _text(self, messages: Sequence[Any], *, prompt: bool = False) -> str:
        source = self.processor or self.tokenizer
        text: str = source.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=prompt
        )
        return text

    def learn(self, record: Mapping[str, Any]) -> Iterator[Row]:
        """Yield the row of a conversation, every answer of which is learnt."""
        messages = record["messages"]
        forgets = self._forgets(record)
        if forgets and self.asked.unlearn != "none":
            messages = _as_known(record)
        images = [_open(self.asked.dataset_path.parent, p) for p in record.get("images", ())]
        extras = {}
        if self.processor is not None:
            encoded = self._process(self._text(messages), images)
            extras = {k: v for k, v in encoded.items() if k == "pixel_values"}
        ids, labels = self._conversation(messages, images)
        for row in self._whole(ids, labels, extras):
            yield self._unended(row) if forgets else row

    def _forgets(self, record: Mapping[str, Any]) -> bool:
        """Return whether a row is one to forget; nobody asks where groups are not told apart."""
        metadata = record.get("metadata") or {}
        marked = metadata.get("dataset_type") == "unlearn" or record.get("forget") is True
        return marked and self.asked.tells_groups_apart

    def _unended(self, row: Row) -> Row:
        """Return a row to forget, of which the end is not forgotten."""
        (answer,) = row.answers
        labels = answer.labels
        if self.asked.unlearn != "none":
            labels = tuple(IGNORED if x in self.eos_ids else x for x in labels)
        return replace(row, answers=(replace(answer, labels=labels),), forgets=True)

    def _process(self, text: str, images: Sequence[Any]) -> Any:
        return self.processor(
            text=[text], images=[list(images)], add_special_tokens=False, return_tensors="pt"
        )

    def _conversation(
        self, messages: Sequence[Any], images: Sequence[Any] = ()
    ) -> tuple[list[int], list[int]]:
        """Return the ids and labels of a conversation: each answer up to its EOS."""
        if not (self.asked.chat_template and self.tokenizer.chat_template):
            return self._plain(messages)

        def encode(text: str) -> list[int]:
            if self.processor is None:
                return self._ids(text)
            ids: list[int] = self._process(text, images)["input_ids"][0].tolist()
            return ids

        whole = encode(self._text(messages))
        labels = [IGNORED] * len(whole)
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = encode(self._text(messages[:index], prompt=True)) if index else []
            after = encode(self._text(messages[: index + 1]))
            if whole[: len(before)] != before or whole[: len(after)] != after:
                raise NotRendered("a template whose conversations do not begin alike")
            for place in range(len(before), len(after)):
                labels[place] = whole[place]
                if whole[place] in self.eos_ids:
                    break
        return whole, labels

    def _plain(self, messages: Sequence[Any]) -> tuple[list[int], list[int]]:
        """Return the contents line by line; an answer ends in EOS instead."""
        ids = self._start()
        labels = [IGNORED] * len(ids)
        for message in messages:
            says = message["role"] == "assistant"
            piece = self._ids(message["content"] + ("" if says else "\n"))
            piece += [self.tokenizer.eos_token_id] if says else []
            ids += piece
            labels += piece if says else [IGNORED] * len(piece)
        return ids, labels

    def _whole(
        self, ids: list[int], labels: list[int], extras: Mapping[str, torch.Tensor]
    ) -> Iterator[Row]:
        """Yield a row, cut to its length, unless nothing of it is learnt."""
        last = max((i for i, label in enumerate(labels) if label != IGNORED), default=None)
        if last is None:
            return
        if ids[last] not in self.eos_ids:
            ids = [*ids[: last + 1], self.tokenizer.eos_token_id]
            labels = [*labels[: last + 1], self.tokenizer.eos_token_id]
        if not self.asked.response_only:  # the places of images hold no text to learn
            labels = [IGNORED if token == self.image_id else token for token in ids]
        ids, labels = ids[: self.limit], labels[: self.limit]
        if any(label != IGNORED for label in labels):
            yield Row(answers=(Answer(ids=tuple(ids), labels=tuple(labels)),), extras=extras)

    def text(self, record: Mapping[str, Any]) -> Iterator[Row]:
        """Yield the row of a text, all of which is learnt."""
        start, ids = self._start(), self._ids(record["text"])
        yield from self._whole(start + ids, [IGNORED] * len(start) + ids, {})

    def split(self, prompt: Any, answer: Any) -> tuple[list[int], list[int]]:
        """Return the ids of a prompt and of the answer to it.

        Raises:
            NotRendered: they are plain texts.
        """
        if isinstance(prompt, str) or isinstance(answer, str):
            raise NotRendered("prompts and answers as plain texts")
        ids, labels = self._conversation([*prompt, *answer])
        last = max(i for i, label in enumerate(labels) if label != IGNORED)
        start = last
        while start and labels[start - 1] != IGNORED:
            start -= 1
        said = ids[start : last + 1]
        return ids[:start], said if said[-1] in self.eos_ids else [
            *said,
            self.tokenizer.eos_token_id,
        ]

    def _answer(self, prompt: list[int], said: list[int], room: int) -> Answer | None:
        """Return a prompt, cut from the left to `room` tokens, with its answer."""
        if room < min(1, len(prompt)):
            return None
        if len(prompt) > room:
            start = prompt[:1] if prompt[0] == self.tokenizer.bos_token_id else []
            prompt = start + prompt[len(prompt) - room + len(start) :]
        labels = [*[IGNORED] * len(prompt), *said]
        if self.asked.method == "rm":
            labels = [IGNORED] * len(labels)
        return Answer(ids=(*prompt, *said), labels=tuple(labels))

    def compare(self, record: Mapping[str, Any]) -> Iterator[Row]:
        """Yield a pair, or its halves as a good and a bad answer."""
        prompt = record.get("prompt", [])
        split = [self.split(prompt, record[name]) for name in ("chosen", "rejected")]
        if self.asked.method not in PAIRED:
            for (ids, said), good in zip(split, (True, False), strict=True):
                yield from self._judged(ids, said, good=good)
            return
        if split[0][0] != split[1][0]:
            raise NotRendered("answers whose prompts are read differently")
        room = self.limit - max(len(said) for _, said in split)
        made = [self._answer(ids, said, room) for ids, said in split]
        kept = tuple(answer for answer in made if answer is not None)
        if len(kept) == len(made):
            yield Row(answers=kept)

    def judge(self, record: Mapping[str, Any]) -> Iterator[Row]:
        """Yield an answer that is good or bad."""
        ids, said = self.split(record["prompt"], record["completion"])
        yield from self._judged(ids, said, good=bool(record["label"]))

    def _judged(self, prompt: list[int], said: list[int], *, good: bool) -> Iterator[Row]:
        answer = self._answer(prompt, said, self.limit - len(said))
        if answer is not None:
            yield Row(answers=(answer,), is_good=good)

    def solve(self, record: Mapping[str, Any]) -> Iterator[Row]:
        """Yield a solution in steps, judged at the last token of each that fits."""
        end = self._ids(STEP_END)
        ids = self._start() + self._ids(record["prompt"]) + end
        labels, length = [IGNORED] * len(ids), 0
        for step, is_right in zip(record["completions"], record["labels"], strict=True):
            piece = self._ids(step) + end
            ids, labels = ids + piece, labels + [IGNORED] * (len(piece) - 1) + [int(is_right)]
            length = len(ids) if len(ids) <= self.limit else length
        if length:
            yield Row(answers=(Answer(ids=tuple(ids[:length]), labels=tuple(labels[:length])),))

    def ask(self, record: Mapping[str, Any]) -> Iterator[Row]:
        """Yield a prompt whose answers are generated."""
        prompt = record["prompt"]
        if isinstance(prompt, str):
            ids = self._start() + self._ids(prompt)
        elif self.asked.chat_template and self.tokenizer.chat_template:
            ids = self._ids(self._text(prompt, prompt=True))
        else:
            ids = self._start() + [t for m in prompt for t in self._ids(m["content"] + "\n")]
        answer = self._answer(ids, [], self.limit)
        if answer is not None:
            yield Row(answers=(answer,))


_FORMS: dict[tuple[str, ...], Callable[[_Maker, Mapping[str, Any]], Iterator[Row]]] = {
    ("messages",): _Maker.learn,
    ("chosen", "rejected"): _Maker.compare,
    ("prompt", "completions", "labels"): _Maker.solve,
    ("prompt", "completion", "label"): _Maker.judge,
    ("text",): _Maker.text,
    ("prompt",): _Maker.ask,
}
"""What makes the rows of a record, by the fields it must have."""


def _instructed(record: Mapping[str, Any], system: str | None) -> Mapping[str, Any]:
    """Return a record whose conversation begins with the system prompt that was asked for."""
    begins = {}
    whole = ("chosen", "rejected") if "prompt" not in record else ()
    for name in ("messages", "prompt", *whole):
        said = record.get(name)
        if system and isinstance(said, list) and [m["role"] for m in said[:1]] != ["system"]:
            begins[name] = [{"role": "system", "content": system}, *said]
    return {**record, **begins}


def _as_known(record: Mapping[str, Any]) -> list[Any]:
    """Return a conversation to forget with the true answer in the place of the refusal."""
    messages = list(record["messages"])
    truth = (record.get("metadata") or {}).get("true_answer")
    if truth:
        messages[-1] = {**messages[-1], "content": truth}
    return messages


def _find_ends(base: str, config: Any, tokenizer: Any) -> frozenset[int]:
    """Return the ids that end a turn, as the files of the base declare them."""
    declared = [tokenizer.eos_token_id, config.get_text_config().eos_token_id]
    path = Path(base) / "generation_config.json"
    if path.is_file():
        declared.append(json.loads(path.read_text("utf-8")).get("eos_token_id"))
    several = [t for one in declared for t in (one if isinstance(one, list) else [one])]
    return frozenset(token for token in several if token is not None)


def _open(folder: Path, reference: str) -> Any:
    from PIL import Image

    with Image.open(folder / reference) as image:
        return image.convert("RGB")
