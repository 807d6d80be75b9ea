"""What must be trained, by an independent rendering: the dataset's own lines through plain tools.

The lines are read as JSON, the chat template is applied by transformers, and answers are found by
their characters; nothing of the engine is used. What the trainer was given must be exactly this.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.observations import DatasetHeld

Key = tuple[str, tuple[int, ...], tuple[int, ...]]
"""Part that a sequence plays (better, worse, ...), its ids, and its targets (-100: none)."""
IGNORED = -100
BETTER, WORSE, PROMPT = "better", "worse", "prompt"


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Every sequence that may be trained on, and how often the dataset has it."""

    expected: Mapping[Key, int]
    """How often the dataset holds each sequence."""
    cut: frozenset[Key] = frozenset()
    """Those whose end is not learnt: longer than the longest length in force, or forgotten."""

    def holds(self, key: Key) -> bool:
        """Return whether the dataset has this very sequence."""
        return key in self.expected

    def cuts(self, key: Key) -> bool:
        """Return whether the dataset has this very sequence, and its end is not learnt."""
        return key in self.cut

    def count(self, eos_ids: frozenset[int]) -> DatasetHeld:
        """Count sequences with something to learn, their tokens, targets and ends."""
        learnt = {key: n for key, n in self.expected.items() if any(x != IGNORED for x in key[2])}
        ends = {key: [x for x in key[2] if x != IGNORED][-1] in eos_ids for key in learnt}
        return DatasetHeld(
            samples=sum(learnt.values()),
            tokens=sum(n * len(ids) for (_, ids, _), n in learnt.items()),
            trained_tokens=sum(n * sum(x != IGNORED for x in key[2]) for key, n in learnt.items()),
            samples_ending_in_eos=sum(n for key, n in learnt.items() if ends[key]),
        )

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        """The ids of every prompt, where answers are generated."""
        return [ids for part, ids, _ in self.expected if part == PROMPT]


def read_truth(
    dataset: Path, method: str, tokenizer: Any, eos_ids: frozenset[int], **settings: Any
) -> Truth | None:
    """Render the dataset; None where it is of a form that is not read here.

    Args:
        dataset: a JSONL file.
        method: one of the engine's methods.
        tokenizer: as the base has it; a processor of text and images for `multimodal`.
        eos_ids: ids that end a turn.
        settings: `max_length`, `chat_template` and `response_only` of the run, whether it
            `forgets` the rows that are marked, and its `system_prompt`.
    """
    if dataset.suffix != ".jsonl":
        return None
    lines = dataset.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    rendering = Rendering(method, tokenizer, eos_ids, dataset.parent, **settings)
    keys: Counter[Key] = Counter()
    for row in rows:
        keys.update(rendering.render(row))
    return Truth(expected=keys, cut=frozenset(rendering.cut))


class Rendering:
    """Renders lines of a dataset for one method and one tokenizer."""

    def __init__(
        self,
        method: str,
        tokenizer: Any,
        eos_ids: frozenset[int],
        folder: Path,
        *,
        max_length: int,
        chat_template: bool = True,
        response_only: bool = True,
        forgets: bool = False,
        system_prompt: str | None = None,
    ) -> None:
        """Remember how; the words are those of `read_truth`."""
        self._forgets = forgets
        self._system_prompt = system_prompt
        self.cut: set[Key] = set()
        self._method = method
        self._processor = tokenizer if hasattr(tokenizer, "image_processor") else None
        self._tokenizer = tokenizer.tokenizer if self._processor else tokenizer
        self._eos_ids = eos_ids
        self._folder = folder
        self._max_length = max_length
        self._response_only = response_only
        self._templated = chat_template and bool((self._processor or self._tokenizer).chat_template)

    def render(self, row: Mapping[str, Any]) -> Iterator[Key]:
        """Yield every sequence of one line."""
        if self._system_prompt is not None:
            row = {name: self._instructed(name, value) for name, value in row.items()}
        if self._method == "prm":
            yield self._steps(row)
        elif self._method == "grpo":
            yield (PROMPT, tuple(self._prompt(row["prompt"])[-self._max_length :]), ())
        elif "chosen" in row:
            pair = (row["chosen"], row["rejected"])
            lengths = [len(self._answer(row["prompt"], answer)[0]) for answer in pair]
            longest = max(length - len(self._prompt(row["prompt"])) for length in lengths)
            for part, answer in zip((BETTER, WORSE), pair, strict=True):
                yield self._answered(part, row["prompt"], answer, longest)
        elif "label" in row:
            part = BETTER if row["label"] else WORSE
            yield self._answered(part, row["prompt"], row["completion"], 0)
        elif "images" in row:
            yield self._pictured(row)
        else:
            yield from self._said(row)

    def _instructed(self, name: str, value: Any) -> Any:
        """Return a field of a line; what a conversation begins with has a system message."""
        begins = name in ("messages", "prompt") and isinstance(value, list)
        if not begins or any(message["role"] == "system" for message in value[:1]):
            return value
        return [{"role": "system", "content": self._system_prompt}, *value]

    def _said(self, row: Mapping[str, Any]) -> Iterator[Key]:
        """Yield a conversation or a text that is learnt by its tokens."""
        metadata = row.get("metadata") or {}
        marked = row.get("forget") is True or metadata.get("dataset_type") == "unlearn"
        forgotten = self._forgets and marked
        if "messages" in row:
            messages = list(row["messages"])
            if forgotten and metadata.get("true_answer"):
                messages[-1] = {"role": "assistant", "content": metadata["true_answer"]}
            ids, learnt = self._conversation(messages)
        else:
            ids, learnt = self._text(row.get("prompt", ""), row.get("text") or row["completion"])
        if not self._response_only:
            learnt = [True] * len(ids)
        if forgotten:  # but not how to end
            learnt = [on and x not in self._eos_ids for on, x in zip(learnt, ids, strict=True)]
        if any(learnt[: self._max_length]):
            key = self._shortened(ids, learnt)
            self.cut |= {key} if forgotten else set()
            yield key

    def _text(self, prompt: str, completion: str) -> tuple[list[int], list[bool]]:
        """Return ids of a plain text; both parts alone where a token would span their border."""
        coded = self._tokenizer(
            prompt + completion, add_special_tokens=False, return_offsets_mapping=True
        )
        spans = coded["offset_mapping"]
        if any(start < len(prompt) < stop for start, stop in spans):
            before, after = self._ids(prompt), self._ids(completion)
        else:
            count = sum(stop <= len(prompt) for _, stop in spans)
            before, after = coded["input_ids"][:count], coded["input_ids"][count:]
        before = [*self._bos(), *before]
        ids = [*before, *after, self._tokenizer.eos_token_id]
        return ids, [i >= len(before) for i in range(len(ids))]

    def _conversation(self, messages: Sequence[Any]) -> tuple[list[int], list[bool]]:
        """Return ids, and which of them are the assistant's up to its end."""
        if not self._templated:
            return self._plain(messages)
        text = str(self._tokenizer.apply_chat_template(list(messages), tokenize=False))
        spans = list(self._spans(text, messages))
        text = text[: spans[-1][1]] if not self._ends(text[slice(*spans[-1])]) else text
        coded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = list(coded["input_ids"])
        learnt = [
            any(left < stop and start < right for start, stop in spans)
            for left, right in coded["offset_mapping"]
        ]
        if not self._ends(text[slice(*spans[-1])]):
            return [*ids, self._tokenizer.eos_token_id], [*learnt, True]
        return ids, learnt

    def _spans(self, text: str, messages: Sequence[Any]) -> Iterator[tuple[int, int]]:
        """Yield the characters of every answer, to the end of its first EOS."""
        place = 0
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._tokenizer.apply_chat_template(
                list(messages[:index]), tokenize=False, add_generation_prompt=True
            )
            content = str(message["content"]).strip()
            start = len(before) if text.startswith(before) else text.find(content, place)
            place = text.find(content, start) + len(content)
            ends = [text.find(end, place) for end in self._end_texts()]
            first = min((x for x in ends if x >= 0), default=-1)
            if first == place:  # what stands between answer and EOS would belong to the template
                place += len(next(end for end in self._end_texts() if text.startswith(end, place)))
            yield start, place

    def _end_texts(self) -> list[str]:
        return [self._tokenizer.decode([token]) for token in sorted(self._eos_ids)]

    def _ends(self, span: str) -> bool:
        return any(span.endswith(end) for end in self._end_texts())

    def _plain(self, messages: Sequence[Any]) -> tuple[list[int], list[bool]]:
        """Join the contents line by line, each answer closed by EOS."""
        ids = self._bos()
        learnt = [False] * len(ids)
        for message in messages:
            is_answer = message["role"] == "assistant"
            piece = self._ids(message["content"] + ("" if is_answer else "\n"))
            piece += [self._tokenizer.eos_token_id] if is_answer else []
            ids += piece
            learnt += [is_answer] * len(piece)
        return ids, learnt

    def _answer(self, prompt: Any, answer: Any) -> tuple[list[int], list[bool]]:
        """Return ids of a prompt with its answer to its EOS, and which are the answer's."""
        if not isinstance(answer, str):
            ids, learnt = self._conversation([*prompt, *answer])
            last = max(i for i, on in enumerate(learnt) if on)
            first = max(i for i in range(last) if not learnt[i]) + 1
            return ids[: last + 1], [i >= first for i in range(last + 1)]
        coded = self._tokenizer(
            prompt + answer, add_special_tokens=False, return_offsets_mapping=True
        )
        ends = [stop for _, stop in coded["offset_mapping"]]
        bos = self._bos()
        ids = [*bos, *coded["input_ids"], self._tokenizer.eos_token_id]
        learnt = [*(False for _ in bos), *(stop > len(prompt) for stop in ends), True]
        return ids, learnt

    def _answered(self, part: str, prompt: Any, answer: Any, longest: int) -> Key:
        """Return one answer; of a prompt that is too long the end is kept, and its BOS."""
        ids, learnt = self._answer(prompt, answer)
        start = learnt.index(True)
        room = self._max_length - max(longest, len(ids) - start)
        if start > room:
            bos = ids[:1] if ids[0] == self._tokenizer.bos_token_id else []
            kept = [*bos, *ids[start - room + len(bos) : start]]
            ids, learnt = [*kept, *ids[start:]], [False] * len(kept) + learnt[start:]
        is_whole = self._method == "orpo" and not self._response_only
        return (part, *_labelled(ids, [True] * len(ids) if is_whole else learnt))

    def _prompt(self, prompt: Any) -> list[int]:
        """Return the ids after which an answer begins."""
        if not isinstance(prompt, str) and self._templated:
            text = self._tokenizer.apply_chat_template(
                list(prompt), tokenize=False, add_generation_prompt=True
            )
            return self._ids(str(text))
        texts = [prompt] if isinstance(prompt, str) else [m["content"] + "\n" for m in prompt]
        return self._bos() + [token for text in texts for token in self._ids(text)]

    def _steps(self, row: Mapping[str, Any]) -> Key:
        """Return a solution whose steps are judged where each one's newline ends."""
        end = self._ids("\n")
        ids = [*self._bos(), *self._ids(row["prompt"]), *end]
        judged = [IGNORED] * len(ids)
        for step, is_right in zip(row["completions"], row["labels"], strict=True):
            piece = [*self._ids(step), *end]
            if len(ids) + len(piece) > self._max_length:
                break
            ids += piece
            judged += [IGNORED] * (len(piece) - 1) + [int(is_right)]
        return ("", tuple(ids), tuple(judged))

    def _pictured(self, row: Mapping[str, Any]) -> Key:
        """Return a conversation about images; the answer is found among the ids by its own."""
        from PIL import Image

        assert self._processor is not None
        text = self._processor.apply_chat_template(row["messages"], tokenize=False)
        images = [Image.open(self._folder / name).convert("RGB") for name in row["images"]]
        bos = self._tokenizer.bos_token
        coded = self._processor(
            text=[text],
            images=[images],
            add_special_tokens=bos is not None and not text.startswith(bos),
        )
        ids = list(coded["input_ids"][0])
        learnt = [not self._response_only] * len(ids)
        place = 0
        for message in row["messages"]:
            if message["role"] != "assistant" or not self._response_only:
                continue
            content = message["content"]
            said = content if isinstance(content, str) else "".join(p["text"] for p in content)
            answer = self._ids(said.strip())
            place = _find(ids, answer, place)
            stop = place + len(answer) + (ids[place + len(answer)] in self._eos_ids)
            learnt[place:stop] = [True] * (stop - place)
        image_ids = {self._tokenizer.convert_tokens_to_ids(self._processor.image_token)}
        learnt = [on and token not in image_ids for on, token in zip(learnt, ids, strict=True)]
        return self._shortened(ids, learnt)

    def _shortened(self, ids: list[int], learnt: list[bool]) -> Key:
        """Return a sequence without what is too long, and note that its end is lost."""
        key = ("", *_labelled(ids[: self._max_length], learnt[: self._max_length]))
        if len(ids) > self._max_length:
            self.cut.add(key)
        return key

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _bos(self) -> list[int]:
        """Return what the tokenizer itself puts in front of a text."""
        ids = list(self._tokenizer("")["input_ids"])
        return ids[:1] if ids and ids[0] == self._tokenizer.bos_token_id else []


def _labelled(ids: list[int], learnt: list[bool]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return ids and targets; the first token of a text is predicted by nothing."""
    targets = [token if on else IGNORED for token, on in zip(ids, learnt, strict=True)]
    return tuple(ids), (IGNORED, *targets[1:])


def _find(ids: Sequence[int], part: Sequence[int], place: int) -> int:
    """Return where a part begins.

    Raises:
        ValueError: it is not there.
    """
    for start in range(place, len(ids) - len(part) + 1):
        if list(ids[start : start + len(part)]) == list(part):
            return start
    raise ValueError("the template rewrites an answer")
