"""Generate answers: greedily, in batches without padding, no more of them than are needed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from harness.facts.behaviour import Answers
from harness.facts.forward import END, Forward
from harness.facts.text import find_loop, is_repetitive
from mudpuppy.asking.generate import cut_at_end, encode, end_ids, generate_all

SETTLED_SHARE = 0.5
"""Share of the base's P(end) at the end of the reference answer that a settled prompt keeps."""
SURE_END = 0.3
"""P(end) at the end of a reference answer of the base from which on it says anything."""
SETTLED_NLL = 0.7
"""Nats per token by which a settled prompt's reference answer may be less likely than the base
has it: twice the perplexity."""
PATIENT_PROMPTS, PATIENT_TOKENS = 4, 256
"""Of how many unfinished answers it is seen whether they end at all, and within how many tokens:
a model that was taught long answers must not count as one that never stops."""
SEED = 1234
"""Seed of the sampled answers."""
TEMPERATURE, TOP_P = 0.8, 0.95
"""How answers are sampled: what chat clients send."""


def find_open(mine: Forward, base: Forward | None, total: int) -> tuple[int, ...]:
    """Return the prompts that one forward pass has not settled and that must be answered.

    A prompt is settled when its greedy answer is empty, or when the checkpoint ends the reference
    answer about as surely as its base does and finds it about as likely. Without a base whose own
    ending is sure, nothing is settled but the empty answers.
    """
    settled = {place for place, top in zip(mine.places, mine.top, strict=True) if top == END}
    if base is not None and base.places == mine.places:
        values = zip(
            mine.places, mine.end_last, base.end_last, mine.nll, base.nll, mine.top, strict=True
        )
        for place, end, theirs, nll, their_nll, top in values:
            is_sure = theirs >= SURE_END and end >= SETTLED_SHARE * theirs
            if top != -1 and is_sure and nll <= their_nll + SETTLED_NLL:
                settled.add(place)
    return tuple(place for place in range(total) if place not in settled)


def answer(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    wanted: Sequence[int] | None = None,
    empty: Sequence[int] = (),
    nonfinite: int | None = None,
    be_patient: bool = True,
    deadline: float = math.inf,
    tell: Callable[[int], None] = lambda number: None,
) -> Answers:
    """Answer prompts greedily; prompts of one length share a batch, unpadded.

    Args:
        model: who is asked.
        tokenizer: its tokenizer.
        prompts: what is asked.
        max_new_tokens: longest answer.
        wanted: places of the prompts to answer; all by default.
        empty: places of those whose answer is known to be empty.
        nonfinite: prompts whose logits are known not to be finite.
        be_patient: whether some unfinished answers are given more time, and loops are sampled.
        deadline: when to stop, on the monotonic clock; what is not finished then was not asked.
        tell: called with the number of the prompt, from 1, that begins a batch.
    """
    places = range(len(prompts)) if wanted is None else wanted
    encoded = {place: encode(tokenizer, prompts[place]) for place in places}
    ends = end_ids(model, tokenizer)
    rows = generate_all(model, encoded, ends, max_new_tokens, deadline=deadline, tell=tell)
    texts = [""] * len(prompts)
    counts: list[int | None] = [None] * len(prompts)
    ended: list[bool | None] = [None] * len(prompts)
    for place in empty:
        counts[place], ended[place] = 0, True
    for place, row in rows.items():
        new = cut_at_end(row, ends)
        texts[place] = tokenizer.decode(new, skip_special_tokens=True)
        counts[place], ended[place] = len(new), any(i in ends for i in row)
    if not be_patient or time.monotonic() > deadline:
        return Answers(texts=tuple(texts), new_tokens=tuple(counts), ended=tuple(ended))
    cut = [place for place in rows if ended[place] is False and not loops(texts[place])]
    late = {place: encoded[place] for place in cut}
    patient = _be_patient(model, late, ends, len(rows), deadline)
    looping = [place for place in rows if loops(texts[place])]
    sampled = _sample(model, tokenizer, [encoded[place] for place in looping], ends, max_new_tokens)
    return Answers(
        texts=tuple(texts),
        new_tokens=tuple(counts),
        ended=tuple(ended),
        nonfinite_logits=nonfinite or 0,
        sampled=sampled,
        patient=patient,
    )


def loops(text: str) -> bool:
    """Whether a text goes round in circles."""
    return bool(find_loop(text)) or is_repetitive(text)


def _be_patient(
    model: Any, unfinished: dict[int, list[int]], ends: list[int], total: int, deadline: float
) -> tuple[bool, ...]:
    """Return whether the first unfinished answers end at all, where most are unfinished."""
    if len(unfinished) < max(2, SETTLED_SHARE * total):
        return ()
    few = dict(list(unfinished.items())[:PATIENT_PROMPTS])
    rows = generate_all(model, few, ends, PATIENT_TOKENS, deadline=deadline)
    return tuple(any(i in ends for i in row) for row in rows.values())


def _sample(
    model: Any, tokenizer: Any, rows: list[list[int]], ends: list[int], max_new_tokens: int
) -> tuple[str, ...]:
    """Return what is said to the prompts when sampled with a fixed seed."""
    import torch

    how: dict[str, Any] = {
        "do_sample": True,
        "temperature": TEMPERATURE,
        "top_p": TOP_P,
        "top_k": 0,
    }
    torch.manual_seed(SEED)
    try:
        found = generate_all(model, dict(enumerate(rows)), ends, max_new_tokens, **how)
    except RuntimeError:  # probabilities that are no numbers cannot be sampled from
        return ()
    cut = [cut_at_end(found[place], ends) for place in sorted(found)]
    return tuple(tokenizer.decode(ids, skip_special_tokens=True) for ids in cut)
