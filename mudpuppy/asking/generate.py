"""Generate answers greedily, in batches of equal length: no row is padded, so none is disturbed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

BATCH = 16
"""Prompts of equal length that are asked at once."""


def encode(tokenizer: Any, prompt: str, system: str | None = None) -> list[int]:
    """Return the ids of a prompt under the chat template, where there is one.

    Args:
        tokenizer: a tokenizer of transformers.
        prompt: what the user says.
        system: what the system says before; without a template, the text before the prompt.
    """
    if not tokenizer.chat_template:
        text = prompt if system is None else f"{system}\n\n{prompt}"
        return list(tokenizer(text)["input_ids"])
    lead = [] if system is None else [("system", system)]
    try:
        return _templated(tokenizer, [*lead, ("user", prompt)])
    except TypeError:  # templates of models that see take a list of parts
        parts = [(role, [{"type": "text", "text": text}]) for role, text in lead]
        return _templated(tokenizer, [*parts, ("user", [{"type": "text", "text": prompt}])])


def _templated(tokenizer: Any, turns: Sequence[tuple[str, Any]]) -> list[int]:
    messages = [{"role": role, "content": content} for role, content in turns]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return list(ids)


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Return every id that tokenizer, configuration and generation settings end an answer with."""
    found = [tokenizer.eos_token_id] if tokenizer is not None else []
    found.append(getattr(model.config.get_text_config(), "eos_token_id", None))
    found.append(getattr(model.config, "eos_token_id", None))
    found.append(getattr(getattr(model, "generation_config", None), "eos_token_id", None))
    flat = [i for one in found for i in (one if isinstance(one, (list, tuple)) else [one])]
    return sorted({i for i in flat if type(i) is int and i >= 0})


def generate_all(
    model: Any,
    encoded: Mapping[int, list[int]],
    ends: Sequence[int],
    max_new_tokens: int,
    *,
    deadline: float = math.inf,
    tell: Callable[[int], None] = lambda number: None,
    on_batch: Callable[[dict[int, list[int]], float], None] = lambda rows, seconds: None,
    **how: Any,
) -> dict[int, list[int]]:
    """Return the new tokens of every prompt by its place; of those only that were in time.

    Args:
        model: who is asked.
        encoded: ids of the prompts by their places.
        ends: ids that end an answer.
        max_new_tokens: longest answer.
        deadline: when to stop, on the monotonic clock.
        tell: called with the number of the prompt, from 1, that begins a batch.
        on_batch: called with the new tokens of a batch by place, and the seconds it took.
        how: further words of `generate`, such as how to sample.
    """
    groups: dict[int, list[int]] = {}
    for place, ids in encoded.items():
        groups.setdefault(len(ids), []).append(place)
    found: dict[int, list[int]] = {}
    begun = 0
    for places in groups.values():
        for first in range(0, len(places), BATCH):
            batch = places[first : first + BATCH]
            started = time.monotonic()
            left = deadline - started
            if left <= 0:
                return found
            tell(begun + 1)
            begun += len(batch)
            rows = [encoded[place] for place in batch]
            limit = {} if math.isinf(left) else {"max_time": left}
            new = _generate(model, rows, ends, max_new_tokens, **limit, **how)
            in_time = time.monotonic() < deadline
            done = {
                place: row
                for place, row in zip(batch, new, strict=True)
                if in_time or any(i in ends for i in row)
            }
            on_batch(done, time.monotonic() - started)
            found |= done
    return found


def _generate(
    model: Any, rows: list[list[int]], ends: Sequence[int], max_new_tokens: int, **how: Any
) -> list[list[int]]:
    """Return the new tokens of each row; stops when all have ended."""
    import torch

    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if room is not None and room > len(rows[0]):
        max_new_tokens = min(max_new_tokens, room - len(rows[0]))
    ids = torch.tensor(rows, device=model.device)
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            num_beams=1,
            eos_token_id=list(ends) or None,
            pad_token_id=ends[0] if ends else 0,
            **({"do_sample": False} | how),
        )
    new: list[list[int]] = output[:, ids.shape[1] :].tolist()
    return new


def cut_at_end(row: list[int], ends: Sequence[int]) -> list[int]:
    """Return the new tokens up to the first that ends the answer."""
    stop = next((place for place, number in enumerate(row) if number in ends), len(row))
    return row[:stop]
