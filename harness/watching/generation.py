"""One batch of greedy answers of an artefact and of its base: finite, not empty, not worse.

Quicker than the whole quiz: all prompts in one batch, padded on the left, a few tokens each.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.evidence.behaviour.behaviour import find_file
from harness.evidence.behaviour.reference_texts import PROMPTS
from harness.observations import Generated
from harness.watching.logits import asking, device_of
from mudpuppy.scoring import exact_match, load_quiz, load_voice_profile, score_voice

NUM_PROMPTS = 6
"""Prompts that are asked."""
NEW_TOKENS = 16
"""Longest answer."""


@dataclass(frozen=True, kw_only=True)
class _Answers:
    """What one model said."""

    rows: list[list[int]]
    """New ids of each answer, its end excluded."""
    ended: list[bool]
    """Whether each ended by itself."""
    nonfinite: int
    """Prompts with logits that are no numbers."""


def generate(
    model: Any, untouched: AbstractContextManager[Any], tokenizer: Any, base: Path
) -> Generated:
    """Ask an artefact and its base the same.

    Args:
        model: the artefact.
        untouched: gives its base.
        tokenizer: the base's.
        base: the base's folder, which may hold a quiz and a voice.
    """
    quiz = find_file("quiz.jsonl", base)
    questions = [q for q in load_quiz(quiz) if q.kind == "fact"][:NUM_PROMPTS] if quiz else []
    prompts = [q.prompt for q in questions] or list(PROMPTS[:NUM_PROMPTS])
    tokens = NEW_TOKENS * 2 if questions else NEW_TOKENS
    mine = _ask(model, tokenizer, prompts, tokens)
    with untouched as control:
        theirs = _ask(control, tokenizer, prompts, tokens)
    texts = [[_decode(tokenizer, row) for row in one.rows] for one in (mine, theirs)]
    right = [
        sum(exact_match(text, q.answer) for text, q in zip(said, questions, strict=False))
        for said in texts
    ]
    voice = find_file("voice.yaml", base)
    profile = load_voice_profile(voice) if voice else None
    scores = [
        sum(score_voice(text, profile) for text in said) / len(said) if profile else None
        for said in texts
    ]
    return Generated(
        prompts=len(prompts),
        nonfinite=mine.nonfinite,
        empty=sum(not row for row in mine.rows),
        control_empty=sum(not row for row in theirs.rows),
        ended=sum(mine.ended),
        control_ended=sum(theirs.ended),
        right=right[0] if questions else None,
        control_right=right[1] if questions else None,
        voice=scores[0],
        control_voice=scores[1],
        first_answer=texts[0][0][:200],
    )


def _decode(tokenizer: Any, row: Sequence[int]) -> str:
    return str(tokenizer.decode(row, skip_special_tokens=True))


def _ask(model: Any, tokenizer: Any, prompts: Sequence[str], new_tokens: int) -> _Answers:
    """Ask greedily, all at once; each step sees the whole text again, so that no cache matters."""
    rows = [_encode(tokenizer, prompt) for prompt in prompts]
    width = max(map(len, rows))
    device = device_of(model)
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    ends = torch.tensor(sorted(_end_ids(model, tokenizer)), device=device)
    bad = torch.zeros(len(rows), dtype=torch.bool, device=device)
    done = torch.zeros_like(bad)
    new: list[list[int]] = [[] for _ in rows]
    cache: Any = None
    fed = ids
    with asking(model):
        for _ in range(new_tokens):
            places = (mask.cumsum(-1) - 1).clamp(min=0)[:, -fed.shape[1] :]
            output = model(
                input_ids=fed,
                attention_mask=mask,
                position_ids=places,
                past_key_values=cache,
                use_cache=True,
            )
            cache = output.past_key_values
            logits = output.logits[:, -1].float()
            bad |= ~torch.isfinite(logits).all(-1)
            fed = logits.nan_to_num().argmax(-1, keepdim=True)
            done |= torch.isin(fed[:, 0], ends)
            for row, token in enumerate(fed[:, 0].tolist()):
                if not done[row]:
                    new[row].append(token)
            if bool(done.all()):
                break
            mask = torch.cat([mask, torch.ones_like(fed)], dim=-1)
    return _Answers(rows=new, ended=done.tolist(), nonfinite=int(bad.sum()))


def _encode(tokenizer: Any, prompt: str) -> list[int]:
    if not tokenizer.chat_template:
        return list(tokenizer(prompt)["input_ids"])
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _end_ids(model: Any, tokenizer: Any) -> set[int]:
    found: set[int] = {tokenizer.eos_token_id}
    for source in (model.config.get_text_config(), getattr(model, "generation_config", None)):
        ids = getattr(source, "eos_token_id", None)
        found |= set(ids if isinstance(ids, list) else [ids]) - {None}
    return found
