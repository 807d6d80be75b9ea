"""Chat templates and label masks, together: which tokens a sample becomes and which are trained.

The end of a turn is always trained: the accident to avoid is `pad_token = eos_token` with a
collator that masks every pad id, after which the model never stops (FM01, FM02).

    answer text   <|im_end|>   newline
    trained       trained      not trained
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Protocol

from jinja2.exceptions import TemplateError

from mudpuppy.data.samples import ChatSample, CompletionSample, Message, TextSample, text_of
from mudpuppy.data.timelimit import TimeLimitReached, time_limit
from mudpuppy.errors import DatasetError, ModelError, UsageError, clip, shown
from mudpuppy.records import LabelShares

IGNORED = -100
"""Label of a token that is not trained (torch's cross-entropy default)."""
TEMPLATE_TIMEOUT_S = 20.0
"""Time that the first sample may take; the others are not watched, since the template ends."""
GENERATION_TAG = re.compile(r"\{%-?\s*generation\b")
"""Begins what the assistant says, in templates that mark it."""


@dataclass(frozen=True, kw_only=True)
class RenderedSample:
    """A sample as the model sees it."""

    input_ids: list[int]
    """Token ids, one a position."""
    labels: list[int]
    """The same ids where the loss is computed, -100 elsewhere; not shifted."""
    truncated: bool
    """Whether tokens were cut off at the end."""
    line: int | None = None
    """1-based line, or row, of the file it came from."""
    forget: bool | None = None
    """Whether it is one to forget; None where nobody asks."""

    def columns(self) -> dict[str, Any]:
        """Return what TRL's SFT trainer takes: ids and labels, already masked."""
        flag = {} if self.forget is None else {"forget": self.forget}
        return {"input_ids": self.input_ids, "labels": self.labels, **flag}


@dataclass(frozen=True, kw_only=True)
class Renderer:
    """How samples are rendered for one tokenizer."""

    tokenizer: Any
    """A transformers tokenizer."""
    eos_ids: frozenset[int]
    """Ids that end a turn, for the tokenizer or the model's generation config."""
    use_template: bool
    """Whether the chat template is applied."""
    response_only: bool
    """Whether only the assistant's tokens are trained."""
    max_length: int
    """Tokens that are kept."""

    def render(self, sample: ChatSample | TextSample | CompletionSample) -> RenderedSample:
        """Tokenise one sample and label it.

        Only conversations pass through the chat template. Of a text everything is trained, of a
        prompt with its completion only the completion; both end in EOS.

        Raises:
            ValueError: the chat template refuses the sample.
        """
        if isinstance(sample, TextSample):
            return self.label(*self._render_completion("", sample.text))
        if isinstance(sample, CompletionSample):
            return self.label(*self._render_completion(sample.prompt, sample.completion))
        messages = list(sample.messages)
        if self.use_template:
            ids, trained = self._render_template(messages, sample.learn_from)
        else:
            ids, trained = self._render_plain(messages, sample.learn_from)
        return self.label(ids, trained)

    def _render_completion(self, prompt: str, completion: str) -> tuple[list[int], list[bool]]:
        """Tokenise so that the prompt's own tokens, as generation has them, come first.

        Both are tokenised as one text, unless a token would reach over the border.
        """
        start = leading_bos(self.tokenizer)
        before = self._ids(prompt) if prompt else []
        whole = self._ids(prompt + completion)
        if whole[: len(before)] != before or len(whole) == len(before):
            whole = before + self._ids(completion)
        first = len(start) + len(before)
        ids = start + whole
        return ids, [False] * first + [True] * (len(ids) - first)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def label(self, ids: list[int], trained: Sequence[bool]) -> RenderedSample:
        """Turn tokens, and which of them the assistant wrote, into a row with labels.

        Every answer is trained to its EOS and no further; where the last one has none, it gets one.
        """
        ids, trained = self._train_the_end(ids, self._train_only_to_eos(ids, trained))
        if not self.response_only:
            trained = [True] * len(ids)
        labels = [token if on else IGNORED for token, on in zip(ids, trained, strict=True)]
        return RenderedSample(
            input_ids=ids[: self.max_length],
            labels=labels[: self.max_length],
            truncated=len(ids) > self.max_length,
        )

    def _render_template(
        self, messages: list[Message], learn_from: int
    ) -> tuple[list[int], list[bool]]:
        """Apply the chat template; the mask comes from its generation tags when it has them."""
        template = self.tokenizer.get_chat_template()
        if GENERATION_TAG.search(template):
            encoded = self.tokenizer.apply_chat_template(
                messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
            )
            ids = list(encoded["input_ids"])
            trained = [bool(on) for on in encoded["assistant_masks"]]
            return ids, without_first_answers(trained, messages, learn_from)
        text, spans = assistant_spans(self.tokenizer, messages, learn_from)
        # The template writes its own BOS, so the tokenizer must not add another (FM05).
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = list(encoded["input_ids"])
        trained = [
            any(start < stop and start < right and stop > left for left, right in spans)
            for start, stop in encoded["offset_mapping"]
        ]
        return ids, trained

    def _render_plain(
        self, messages: list[Message], learn_from: int
    ) -> tuple[list[int], list[bool]]:
        """Join the contents line by line, each assistant message closed by EOS."""
        ids: list[int] = leading_bos(self.tokenizer)
        trained = [False] * len(ids)
        for index, message in enumerate(messages):
            is_answer = message["role"] == "assistant"
            text = message["content"] if is_answer else message["content"] + "\n"
            piece = self._ids(text)
            if is_answer:
                piece.append(self.tokenizer.eos_token_id)
            ids += piece
            trained += [is_answer and index >= learn_from] * len(piece)
        return ids, trained

    def _train_only_to_eos(self, ids: Sequence[int], trained: Sequence[bool]) -> list[bool]:
        """Make every trained span end at its EOS, also where the template left that EOS out."""
        result: list[bool] = []
        has_ended = False
        for token, on in zip(ids, trained, strict=True):
            follows = bool(result) and result[-1] and token in self.eos_ids
            has_ended = has_ended and on
            result.append((on or follows) and not has_ended)
            # What stands behind EOS in one span, such as a newline, belongs to the template.
            has_ended = has_ended or (result[-1] and token in self.eos_ids)
        return result

    def _train_the_end(self, ids: list[int], trained: list[bool]) -> tuple[list[int], list[bool]]:
        """Append a trained EOS when the sample does not end its last answer with one."""
        last = max((i for i, on in enumerate(trained) if on), default=None)
        if last is None or ids[last] in self.eos_ids:
            return ids, trained
        return [*ids[: last + 1], self.tokenizer.eos_token_id], [*trained[: last + 1], True]


def without_first_answers(
    trained: list[bool], messages: Sequence[Message], learn_from: int
) -> list[bool]:
    """Return the mask without the answers that stand before `learn_from`, which are prompt.

    Raises:
        ValueError: the template does not mark the answers one by one.
    """
    answers = [index for index, m in enumerate(messages) if m["role"] == "assistant"]
    skipped = sum(index < learn_from for index in answers)
    if not skipped:
        return trained
    starts = [on and not (i and trained[i - 1]) for i, on in enumerate(trained)]
    if sum(starts) != len(answers):
        raise ValueError(
            f"its generation tags mark {sum(starts)} of {len(answers)} answers, so that the prompt "
            "cannot be told from the completion"
        )
    return [on and seen > skipped for on, seen in zip(trained, accumulate(starts), strict=True)]


def assistant_spans(
    tokenizer: Any, messages: list[Message], learn_from: int = 0
) -> tuple[str, list[tuple[int, int]]]:
    """Render the conversation and find the characters that the assistant writes.

    For templates without generation tags: what the template adds when an assistant message is
    appended to the prompt before it, found by rendering the conversation up to each turn.
    """

    def prefix(part: list[Message], prompt: bool) -> int | None:
        """Return the length of the rendered part, when the whole conversation starts with it."""
        try:
            text = tokenizer.apply_chat_template(part, tokenize=False, add_generation_prompt=prompt)
        except TemplateError:  # some templates refuse a conversation that is cut short
            return None
        return len(text) if whole.startswith(text) else None

    whole = str(tokenizer.apply_chat_template(messages, tokenize=False))
    spans: list[tuple[int, int]] = []
    position = 0
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        content = text_of(message).strip()
        start = prefix(messages[:index], True) if index else None
        if start is None:
            start = whole.find(content, position)
            if start < 0:  # the template dropped or rewrote this turn
                continue
        stop = prefix(messages[: index + 1], False)
        position = start + len(content) if stop is None else stop
        if index >= learn_from:
            spans.append((start, position))
    return whole, spans


def leading_bos(tokenizer: Any) -> list[int]:
    """Return the BOS that the tokenizer itself would put in front, if any."""
    ids = list(tokenizer("")["input_ids"])
    return ids[:1] if ids and ids[0] == tokenizer.bos_token_id else []


class RowMaker(Protocol):
    """What renders one sample after the other."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that reads the texts."""

    @property
    def max_length(self) -> int:
        """Tokens that are kept."""

    def render(self, sample: Any) -> RenderedSample:
        """Tokenise one sample and label it."""


def render_all(renderer: RowMaker, samples: Iterable[Any], file: str) -> list[RenderedSample]:
    """Render every sample and leave out those with nothing to train.

    Raises:
        DatasetError: the template refuses a sample, a sample holds a control token in its text, or
            no sample has a trained token.
        ModelError: the template does not end.
    """
    rendered: list[RenderedSample] = []
    control = control_tokens(renderer.tokenizer)
    for sample in samples:
        _refuse_control_tokens(control, sample, file)
        with blaming_template(file, sample.line, is_first=not rendered):
            one = renderer.render(sample)
        if any(label != IGNORED for label in one.labels):
            rendered.append(replace(one, line=sample.line))
    if not rendered:
        raise DatasetError(
            f"no sample has a trained token within {renderer.max_length} tokens",
            file=file,
            hint="raise --max-length",
        )
    return rendered


@contextmanager
def blaming_template(file: str, line: int, *, is_first: bool) -> Iterator[None]:
    """Turn what a chat template raises into an error that names the sample.

    Raises:
        DatasetError: the template refuses the sample.
        ModelError: the template does not end; only watched where `is_first`.
    """
    try:
        with time_limit(TEMPLATE_TIMEOUT_S) if is_first else nullcontext():
            yield
    except TimeLimitReached:
        raise ModelError(
            f"the chat template does not come to an end within {TEMPLATE_TIMEOUT_S} s",
            hint="mend chat_template.jinja of the model, or use --no-chat-template",
        ) from None
    except UsageError:
        raise
    except Exception as error:  # a template is a program and can raise anything
        raise DatasetError(
            f"the chat template refuses this sample: {_reason(error)}",
            file=file,
            line=line,
            hint="check the order of roles, or use --no-chat-template",
        ) from error


def _reason(error: Exception) -> str:
    """Return an error on one line, with its kind where its text alone does not say enough."""
    if isinstance(error, TemplateError | ValueError) and str(error):
        return clip(str(error))
    return clip(f"{type(error).__name__}: {error}".rstrip(": "))


def control_tokens(tokenizer: Any) -> re.Pattern[str] | None:
    """Return a pattern of the tokens that the tokenizer reads as control, wherever they stand."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    names = {name for name in (*tokenizer.all_special_tokens, *added) if name.strip()}
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if names else None


def _refuse_control_tokens(control: re.Pattern[str] | None, sample: Any, file: str) -> None:
    """Refuse a text with a control token in it: it would end the turn, or begin another."""
    for where, text in _texts(sample):
        refuse_control_token(control, text, where, file, sample.line)


def refuse_control_token(
    control: re.Pattern[str] | None, text: str, where: str, file: str, line: int
) -> None:
    """Refuse one text with a control token in it.

    Raises:
        DatasetError: it holds one; `where` says which field it is.
    """
    found = control.search(text) if control else None
    if found:
        raise DatasetError(
            f"{where} holds {shown(found[0])}, which this tokenizer reads as a control token and "
            "not as text",
            file=file,
            line=line,
            hint="take it out of the text, or put a space into it",
        )


def _texts(sample: Any) -> Iterable[tuple[str, str]]:
    """Yield the texts of a sample that is learnt whole, each with its place."""
    if isinstance(sample, TextSample):
        yield "text", sample.text
    elif isinstance(sample, CompletionSample):
        yield "prompt", sample.prompt
        yield "completion", sample.completion
    else:
        for index, message in enumerate(sample.messages):
            yield f"messages[{index}].content", text_of(message)


def count_labels(samples: Sequence[Any], eos_ids: frozenset[int], dropped: int = 0) -> LabelShares:
    """Count what is really taught, for the provenance."""
    trained = [[label for label in sample.labels if label != IGNORED] for sample in samples]
    return LabelShares(
        samples=len(samples),
        tokens=sum(len(sample.input_ids) for sample in samples),
        trained_tokens=sum(len(labels) for labels in trained),
        eos_tokens=sum(label in eos_ids for labels in trained for label in labels),
        samples_ending_in_eos=sum(bool(labels) and labels[-1] in eos_ids for labels in trained),
        truncated=sum(sample.truncated for sample in samples),
        dropped=dropped,
    )
