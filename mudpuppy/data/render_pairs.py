"""Prompts with one or two answers as token ids: what preference, reward and GRPO trainers take.

The ids are those of `mudpuppy.data.render`: the chat template is applied once, no BOS is doubled,
and every answer ends in EOS. The prompt's ids are a prefix of the whole, the same for both answers,
and where something must be cut it is the beginning of the prompt, never the end of an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mudpuppy.data.render import (
    IGNORED,
    Renderer,
    blaming_template,
    control_tokens,
    leading_bos,
    refuse_control_token,
)
from mudpuppy.data.samples import (
    ChatSample,
    Conversation,
    LabelledSample,
    PreferenceSample,
    PromptSample,
    Sample,
)
from mudpuppy.errors import DatasetError

Side = Conversation | str
"""A prompt or an answer, as a sample holds it."""
_UNBOUNDED = 1 << 62


@dataclass(frozen=True, kw_only=True)
class PairRow:
    """A prompt and its better and worse answer."""

    prompt_ids: list[int]
    """The prompt, with whatever the template writes before the answer."""
    chosen_ids: list[int]
    """The better answer, to its EOS."""
    rejected_ids: list[int]
    """The worse answer, to its EOS."""
    truncated: bool
    """Whether the beginning of the prompt was cut off."""

    @property
    def input_ids(self) -> list[int]:
        """The prompt and the better answer."""
        return self.prompt_ids + self.chosen_ids

    @property
    def labels(self) -> list[int]:
        """The ids of the better answer, -100 before it."""
        return [IGNORED] * len(self.prompt_ids) + self.chosen_ids

    @property
    def width(self) -> int:
        """Tokens of the prompt and the longer answer: the worse one is padded and run as well."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))

    def columns(self) -> dict[str, Any]:
        """Return what TRL's DPO collator takes."""
        return {
            "prompt_ids": self.prompt_ids,
            "chosen_ids": self.chosen_ids,
            "rejected_ids": self.rejected_ids,
        }


@dataclass(frozen=True, kw_only=True)
class LabelledRow:
    """A prompt and an answer that is good or bad by itself."""

    prompt_ids: list[int]
    """The prompt, with whatever the template writes before the answer."""
    completion_ids: list[int]
    """The answer, to its EOS."""
    label: bool
    """Whether it is a good one."""
    truncated: bool
    """Whether the beginning of the prompt was cut off."""

    @property
    def input_ids(self) -> list[int]:
        """The prompt and the answer."""
        return self.prompt_ids + self.completion_ids

    @property
    def labels(self) -> list[int]:
        """The ids of the answer, -100 before it."""
        return [IGNORED] * len(self.prompt_ids) + self.completion_ids

    def columns(self) -> dict[str, Any]:
        """Return what TRL's KTO collator takes, but for the KL answers."""
        return {
            "prompt_ids": self.prompt_ids,
            "completion_ids": self.completion_ids,
            "label": self.label,
        }


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """A prompt whose answers are generated."""

    prompt: Side
    """The prompt as the sample has it."""
    fields: dict[str, Any]
    """Further columns for the reward functions."""
    input_ids: list[int]
    """The prompt, with whatever the template writes before an answer."""
    truncated: bool
    """Whether its beginning was cut off."""

    @property
    def labels(self) -> list[int]:
        """Nothing of a prompt is learnt."""
        return [IGNORED] * len(self.input_ids)

    def columns(self) -> dict[str, Any]:
        """Return what TRL's GRPO trainer takes."""
        prompt = self.prompt if isinstance(self.prompt, str) else [dict(m) for m in self.prompt]
        return {**self.fields, "prompt": prompt}


def render_pairs(
    renderer: Renderer, samples: Iterable[PreferenceSample], file: str
) -> list[PairRow]:
    """Tokenise pairs; those with an answer that does not fit into `max_length` are left out.

    Raises:
        DatasetError: the template refuses a sample, an answer is none, a text holds a control
            token, or nothing is left.
        ModelError: the template does not end.
    """
    rows = []
    for sample, encode in _guarded(renderer, samples, file):
        prompt, chosen, rejected = _share_prompt(sample)
        prompt_ids, chosen_ids = encode(prompt, chosen)
        other_ids, rejected_ids = encode(prompt, rejected)
        # A token may span the end of the prompt in one of them only: it goes to the answers.
        shared = _common_prefix(prompt_ids, other_ids)
        chosen_ids, rejected_ids = (
            prompt_ids[shared:] + chosen_ids,
            other_ids[shared:] + rejected_ids,
        )
        kept = _fit(renderer, prompt_ids[:shared], max(len(chosen_ids), len(rejected_ids)))
        if kept is not None:
            rows.append(
                PairRow(
                    prompt_ids=kept,
                    chosen_ids=chosen_ids,
                    rejected_ids=rejected_ids,
                    truncated=len(kept) < shared,
                )
            )
    return _require_some(rows, renderer, file)


def render_labelled(
    renderer: Renderer, samples: Iterable[LabelledSample | PreferenceSample], file: str
) -> list[LabelledRow]:
    """Tokenise labelled answers; a pair counts as a good and a bad one.

    Raises:
        DatasetError: as `render_pairs`.
        ModelError: the template does not end.
    """
    rows = []
    for sample, encode in _guarded(renderer, _unpaired(samples), file):
        prompt_ids, answer_ids = encode(sample.prompt, sample.completion)
        kept = _fit(renderer, prompt_ids, len(answer_ids))
        if kept is not None:
            rows.append(
                LabelledRow(
                    prompt_ids=kept,
                    completion_ids=answer_ids,
                    label=sample.label,
                    truncated=len(kept) < len(prompt_ids),
                )
            )
    return _require_some(rows, renderer, file)


def render_prompts(
    renderer: Renderer, samples: Iterable[PromptSample], file: str
) -> list[PromptRow]:
    """Tokenise prompts; of a long one the end is kept.

    Raises:
        DatasetError: the template refuses a prompt, or a text holds a control token.
        ModelError: the template does not end.
    """
    rows = []
    for sample, _ in _guarded(renderer, samples, file):
        ids = prompt_ids_of(renderer, sample.prompt)
        kept = _fit(renderer, ids, 0) or ids
        rows.append(
            PromptRow(
                prompt=sample.prompt,
                fields=dict(sample.fields),
                input_ids=kept,
                truncated=len(kept) < len(ids),
            )
        )
    return rows


def prompt_ids_of(renderer: Renderer, prompt: Side) -> list[int]:
    """Return the ids that an answer is generated after; not cut."""
    tokenizer = renderer.tokenizer
    if not isinstance(prompt, str) and renderer.use_template:
        text = tokenizer.apply_chat_template(
            list(prompt), tokenize=False, add_generation_prompt=True
        )
        # The template writes its own BOS, so the tokenizer must not add another (FM05).
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = leading_bos(tokenizer)
    texts = [prompt] if isinstance(prompt, str) else [m["content"] + "\n" for m in prompt]
    for text in texts:
        ids += tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def cut_prompt(renderer: Renderer, ids: list[int], room: int) -> list[int]:
    """Return the last `room` ids of a prompt, and its BOS."""
    if len(ids) <= room:
        return ids
    bos = ids[:1] if ids[0] == renderer.tokenizer.bos_token_id else []
    return bos + ids[len(ids) - room + len(bos) :] if room > len(bos) else bos[:room]


def _fit(renderer: Renderer, prompt_ids: list[int], answer_length: int) -> list[int] | None:
    """Return as much of the prompt as fits beside the answer, or None where no token of it does."""
    room = renderer.max_length - answer_length
    if room < min(1, len(prompt_ids)):
        return None
    return cut_prompt(renderer, prompt_ids, room)


class _Encoder:
    """Splits a prompt and an answer into ids, by the rules of the renderer."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = replace(renderer, response_only=True, max_length=_UNBOUNDED)

    def __call__(self, prompt: Side, answer: Side) -> tuple[list[int], list[int]]:
        """Return the ids of the prompt and of the answer with its EOS.

        Raises:
            ValueError: the template leaves the answer out.
        """
        if isinstance(prompt, str) or isinstance(answer, str):
            return self._split_text(str(prompt), str(answer))
        messages = (*prompt, *answer)
        row = self._renderer.render(ChatSample(line=0, messages=messages))
        runs = _runs(row.labels)
        turns = sum(message["role"] == "assistant" for message in messages)
        if not runs or (self._renderer.use_template and len(runs) < turns):
            raise ValueError("the template leaves out an answer")
        start, stop = runs[-1]
        return row.input_ids[:start], row.input_ids[start:stop]

    def _split_text(self, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        """Split plain texts where the answer begins; a token across the border is the answer's."""
        tokenizer = self._renderer.tokenizer
        encoded = tokenizer(prompt + answer, add_special_tokens=False, return_offsets_mapping=True)
        ids = list(encoded["input_ids"])
        ends = [end for _, end in encoded["offset_mapping"]]
        start = next((i for i, end in enumerate(ends) if end > len(prompt)), len(ids))
        return leading_bos(tokenizer) + ids[:start], [*ids[start:], tokenizer.eos_token_id]


ANSWER_FORM = (
    'messages: {"prompt": [{"role": "user", ...}], "chosen": [{"role": "assistant", ...}], ...}; '
    'texts: {"prompt": "...", "chosen": "...", "rejected": "..."}'
)
"""What prompts and answers look like, for hints."""


def _fault(prompt: Side, answer: Side) -> str:
    """Return what keeps a prompt and an answer from being that, or nothing."""
    if isinstance(prompt, str) != isinstance(answer, str):
        return "prompt and answers must all be texts, or all be messages"
    if not isinstance(answer, str) and [m["role"] for m in answer] != ["assistant"]:
        return "an answer must be one message of the role assistant"
    text = answer if isinstance(answer, str) else answer[0]["content"]
    return "" if text.strip() else "an answer is empty"


def _runs(labels: Sequence[int]) -> list[tuple[int, int]]:
    """Return the spans of trained positions."""
    runs: list[tuple[int, int]] = []
    for index, label in enumerate(labels):
        if label == IGNORED:
            continue
        if runs and runs[-1][1] == index:
            runs[-1] = (runs[-1][0], index + 1)
        else:
            runs.append((index, index + 1))
    return runs


def _guarded(renderer: Renderer, samples: Iterable[Any], file: str) -> Iterator[tuple[Any, Any]]:
    """Yield each sample with an encoder whose errors name the sample."""
    control = control_tokens(renderer.tokenizer)
    encoder = _Encoder(renderer)
    for index, sample in enumerate(samples):
        for where, text in _texts(sample):
            refuse_control_token(control, text, where, file, sample.line)

        def encode(
            prompt: Side, answer: Side, sample: Sample = sample, index: int = index
        ) -> tuple[list[int], list[int]]:
            fault = _fault(prompt, answer)
            if fault:
                raise DatasetError(fault, file=file, line=sample.line, hint=ANSWER_FORM)
            with blaming_template(file, sample.line, is_first=index == 0):
                return encoder(prompt, answer)

        yield sample, encode


def _texts(sample: Sample) -> Iterator[tuple[str, str]]:
    """Yield every text of a sample, with the name of its field."""
    for field in ("prompt", "chosen", "rejected", "completion"):
        side = getattr(sample, field, ())
        if isinstance(side, str):
            yield field, side
        else:
            for index, message in enumerate(side):
                yield f"{field}[{index}].content", message["content"]


def _share_prompt(sample: PreferenceSample) -> tuple[Side, Side, Side]:
    """Move what both answers begin with into a prompt that is empty."""
    prompt, chosen, rejected = sample.prompt, sample.chosen, sample.rejected
    if prompt or isinstance(chosen, str) or isinstance(rejected, str):
        return ("" if isinstance(chosen, str) and not prompt else prompt), chosen, rejected
    shared = _common_prefix(chosen, rejected)
    shared = min(shared, len(chosen) - 1, len(rejected) - 1)
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _common_prefix(left: Sequence[Any], right: Sequence[Any]) -> int:
    """Return how many items two sequences begin with alike."""
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


def _unpaired(samples: Iterable[LabelledSample | PreferenceSample]) -> Iterator[LabelledSample]:
    """Yield labelled samples, and both halves of pairs."""
    for sample in samples:
        if isinstance(sample, LabelledSample):
            yield sample
            continue
        prompt, chosen, rejected = _share_prompt(sample)
        for answer, is_good in ((chosen, True), (rejected, False)):
            yield LabelledSample(line=sample.line, prompt=prompt, completion=answer, label=is_good)


def _require_some(rows: list[Any], renderer: Renderer, file: str) -> list[Any]:
    """Refuse a set of which nothing is left."""
    if not rows:
        raise DatasetError(
            f"no sample has answers that fit into {renderer.max_length} tokens with any of its "
            "prompt",
            file=file,
            hint="raise --max-length",
        )
    return rows
