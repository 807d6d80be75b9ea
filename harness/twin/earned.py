"""What answers earn (GRPO): rewards asked for again, and advantages within each group.

The advantage of an answer is its reward less the mean of its group, over the group's standard
deviation plus 1e-4 (Shao et al. 2024, section 4.1.2; the term in the denominator is TRL's).
"""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from harness.observations_twin import Deviation
from harness.twin.asked import Asked
from harness.twin.dataset import Made
from harness.twin.rewards import find_built_in
from harness.twin.rows import IGNORED, Row

STEADY = 1e-4
"""What keeps a group of equal rewards from a division by zero."""
CLOSE = 1e-3
"""Difference of an advantage that fp32 explains."""


def compare_advantages(
    asked: Asked, made: Made, steps: Sequence[Sequence[Sequence[Row]]]
) -> list[Deviation]:
    """Return the first group of another size, and the first advantage that was not earned."""
    by_prompt = {
        row.answers[0].ids: record for row, record in zip(made.rows, made.columns, strict=True)
    }
    functions = _find_functions(asked, made)
    found: list[Deviation] = []
    for number, step in enumerate(steps, start=1):
        groups: dict[tuple[int, ...], list[Row]] = defaultdict(list)
        for rows in step:
            for row in rows:
                groups[_split(row)[0]].append(row)
        for prompt, group in groups.items():
            if len(group) != asked.num_generations:
                what, wanted = "answers of a group", asked.num_generations
                found.append(Deviation(what=what, step=number, expected=wanted, found=len(group)))
            elif prompt in by_prompt:
                found += _compare_group(group, by_prompt[prompt], functions, made, number)
        if found:
            return found[:1]
    return found


def _compare_group(
    group: Sequence[Row], record: Any, functions: Sequence[Any], made: Made, step: int
) -> list[Deviation]:
    said = [list(_split(row)[1]) for row in group]
    rewards = np.array(_reward(said, record, functions, made), dtype=np.float64)
    spread = rewards.std(ddof=1)
    earned = (rewards - rewards.mean()) / (spread + STEADY)
    used = np.array([float(row.extras["advantage"]) for row in group])
    worst = int(np.abs(earned - used).argmax())
    # Rewards are added in fp32; where they are almost equal, the division magnifies it.
    bound = CLOSE * (1 + np.abs(rewards).max() / (spread + STEADY) * 1e-3)
    if abs(earned[worst] - used[worst]) <= bound:
        return []
    return [
        Deviation(
            what=f"advantage of an answer that is rewarded with {rewards[worst]:.6g}",
            step=step,
            expected=float(earned[worst]),
            found=float(used[worst]),
        )
    ]


def _reward(
    said: Sequence[list[int]], record: Any, functions: Sequence[Any], made: Made
) -> list[float]:
    """Return the sum of all rewards of each answer to one prompt."""
    texts = made.tokenizer.batch_decode(said, skip_special_tokens=True)
    is_chat = not isinstance(record["prompt"], str)
    answers = [[{"role": "assistant", "content": t}] if is_chat else t for t in texts]
    given = {name: [value] * len(said) for name, value in record.items() if name != "prompt"}
    total = [0.0] * len(said)
    for function in functions:
        earned = function(
            prompts=[record["prompt"]] * len(said),
            completions=answers,
            completion_ids=list(said),
            **given,
        )
        total = [t + (reward or 0.0) for t, reward in zip(total, earned, strict=True)]
    return total


def _find_functions(asked: Asked, made: Made) -> list[Callable[..., list[float | None]]]:
    """Return the reward functions by name: built-in ones are the harness's, others a person's.

    Only to find and call a person's own function is the engine asked.
    """
    found: list[Any] = []
    for name in asked.reward_funcs:
        own = find_built_in(name, made.eos_ids)
        if own is None:
            rewards: Any = importlib.import_module("mudpuppy.methods.rewards")
            (own,) = rewards.find_rewards((name,), eos_ids=made.eos_ids)
        found.append(own)
    return found


def _split(row: Row) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids of the prompt and of the answer."""
    answer = row.answers[0]
    said = next((i for i, x in enumerate(answer.labels) if x != IGNORED), len(answer.ids))
    return answer.ids[:said], answer.ids[said:]
