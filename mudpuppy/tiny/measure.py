"""Ask a model the quiz and count what it knows, refuses, says in its voice, and ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from mudpuppy.scoring import Question, VoiceProfile, exact_match, is_refusal, mean_voice

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

MAX_NEW_TOKENS = 48
"""Tokens an answer may have; the longest taught one has about half."""


class Reply(NamedTuple):
    """A generated answer, and whether EOS ended it within the limit."""

    text: str
    ended: bool


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What the quiz found."""

    facts: int
    """Questions on facts."""
    exact: int
    """Facts answered exactly."""
    later: int
    """Questions on years after the cutoff."""
    refused: int
    """Of those, how many were refused."""
    over_refused: int
    """Facts that were refused by mistake."""
    voice: float
    """Mean voice score of all answers, 0 to 1."""
    answers: int
    """All answers."""
    ended: int
    """Answers that EOS ended within the limit."""
    empty: int
    """Answers without text."""

    def problems(self) -> list[str]:
        """Return what is missing for a model that is fit to be used; empty when it is fit."""
        wanted = [
            (self.exact >= 0.95 * self.facts, f"{self.exact} of {self.facts} facts are exact"),
            (self.refused >= 0.8 * self.later, f"{self.refused} of {self.later} are refused"),
            (self.voice >= 0.8, f"the voice scores {self.voice:.2f}"),
            (self.ended == self.answers, f"{self.ended} of {self.answers} answers end"),
            (self.empty == 0, f"{self.empty} answers are empty"),
        ]
        return [text for fine, text in wanted if not fine]


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[Question],
    profile: VoiceProfile,
) -> Scores:
    """Return the scores of the greedy answers to `questions`."""
    replies = ask(model, tokenizer, [question.prompt for question in questions])
    pairs = list(zip(questions, replies, strict=True))
    facts = [(question, reply.text) for question, reply in pairs if question.kind == "fact"]
    later = [reply.text for question, reply in pairs if question.kind == "post-cutoff"]
    return Scores(
        facts=len(facts),
        exact=sum(exact_match(text, question.answer) for question, text in facts),
        later=len(later),
        refused=sum(is_refusal(text, profile) for text in later),
        over_refused=sum(is_refusal(text, profile) for _, text in facts),
        voice=mean_voice([reply.text for reply in replies], profile),
        answers=len(replies),
        ended=sum(reply.ended for reply in replies),
        empty=sum(not reply.text.strip() for reply in replies),
    )


def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[Reply]:
    """Return the greedy answers to `prompts` under the chat template.

    Prompts of equal length share a batch, so that padding cannot change an answer.
    """
    groups: dict[int, list[int]] = {}
    encoded = []
    for place, prompt in enumerate(prompts):
        messages = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        encoded.append(ids)
        groups.setdefault(len(ids), []).append(place)
    replies: dict[int, Reply] = {}
    for places in groups.values():
        batch = [encoded[place] for place in places]
        replies |= zip(places, _generate(model, tokenizer, batch, max_new_tokens), strict=True)
    return [replies[place] for place in range(len(prompts))]


def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    batch: list[list[int]],
    max_new_tokens: int,
) -> list[Reply]:
    import torch

    ids = torch.tensor(batch, device=model.device)
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    replies = []
    for row in output[:, ids.shape[1] :].tolist():
        text = tokenizer.decode(row, skip_special_tokens=True)
        replies.append(Reply(text, tokenizer.eos_token_id in row))
    return replies
