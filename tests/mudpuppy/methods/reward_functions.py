"""Reward functions, good and broken, for the tests of this folder; named by dotted path."""

import math

NUMBER = 3


def even(completion_ids):
    """Return the share of even ids: every model can learn to say more of them."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def takes_all(**given):
    """Return the length of the column `answer`, and prove that everything is given."""
    assert {"prompts", "completions", "completion_ids", "trainer_state"} <= set(given)
    return [float(len(answer)) for answer in given["answer"]]


def raises(completions, answer):
    """Raise for one answer only."""
    if "No." in answer:
        raise ZeroDivisionError("no mercy")
    return [1.0] * len(completions)


def too_few(completions):
    """Return one reward less than there are answers."""
    return [1.0] * (len(completions) - 1)


def no_list(completions):
    """Return no list at all."""
    return len(completions)


def not_finite(completions):
    """Return NaN for the second answer."""
    return [1.0, math.nan, *[0.0] * (len(completions) - 2)]


def no_number(completions):
    """Return texts."""
    return ["good"] * len(completions)


def no_opinion(completions):
    """Judge every second answer."""
    return [None if index % 2 else 1.0 for index in range(len(completions))]


def wants_more(completions, difficulty):
    """Ask for a column that is not there."""
    return [0.0 for _ in completions]


def by_place(completions, /):
    """Take the answers by position only."""
    return [0.0 for _ in completions]


async def later(completions):
    """Answer some time."""
    return [0.0 for _ in completions]
