"""Reward functions for GRPO: built-in ones, and a person's own by dotted path. No torch.

A function is called with keywords, as TRL calls it: `completions`, `prompts`, `completion_ids`, and
every further column of the dataset; each is a list with one entry an answer, and so is what it
returns. It gets those that it names, or all where it takes `**kwargs`.
"""

from __future__ import annotations

import importlib
import inspect
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mudpuppy.errors import ConfigError, EngineError, clip, near_names, shown
from mudpuppy.scoring import exact_match

FLAG = "--reward-funcs"
ALWAYS_GIVEN = frozenset(
    {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"}
)
"""What every reward function may ask for, whatever columns there are."""
HALF_LENGTH = 64
"""Tokens at which the built-in `length` gives half the reward."""
_THINKING = re.compile(r"\s*<think>.+?</think>\s*\S.*", re.DOTALL)


def text_of_answer(completion: Any) -> str:
    """Return an answer as text, whether it came as text or as a message."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def reward_exact_match(completions: Sequence[Any], answer: Sequence[Any]) -> list[float]:
    """Give 1 where the whole answer says what the column `answer` says, as the scorer judges."""
    pairs = zip(completions, answer, strict=True)
    return [float(exact_match(text_of_answer(said), str(gold))) for said, gold in pairs]


def reward_length(completions: Sequence[Any], completion_ids: Sequence[Any]) -> list[float]:
    """Give more the shorter an answer is: 1/2 at 64 tokens, and 0 where it says nothing."""
    pairs = zip(completions, completion_ids, strict=True)
    return [
        HALF_LENGTH / (HALF_LENGTH + len(ids)) if text_of_answer(said).strip() else 0.0
        for said, ids in pairs
    ]


def reward_format(completions: Sequence[Any]) -> list[float]:
    """Give 1 where an answer thinks between `<think>` and `</think>`, and says something after."""
    return [float(bool(_THINKING.fullmatch(text_of_answer(said)))) for said in completions]


def make_reward_end(eos_ids: Iterable[int]) -> Callable[..., list[float]]:
    """Return the built-in `end`: 1 where an answer ends by itself, before its tokens run out."""
    ends = frozenset(eos_ids)

    def reward_end(completion_ids: Sequence[Sequence[int]]) -> list[float]:
        return [float(bool(ids) and ids[-1] in ends) for ids in completion_ids]

    return reward_end


def built_in(eos_ids: Iterable[int] = ()) -> dict[str, Callable[..., list[float]]]:
    """Return the built-in reward functions by name."""
    return {
        "exact-match": reward_exact_match,
        "length": reward_length,
        "format": reward_format,
        "end": make_reward_end(eos_ids),
    }


@dataclass(frozen=True, kw_only=True)
class RewardFunction:
    """A reward function whose arguments are chosen and whose answer is checked."""

    name: str
    """As the person wrote it."""
    function: Callable[..., Any]
    """What is called."""
    wanted: frozenset[str] | None
    """Arguments it takes; None where it takes any."""

    @property
    def __name__(self) -> str:
        """What TRL calls its numbers in the log."""
        return self.name

    def __call__(self, **given: Any) -> list[float | None]:
        """Return one reward an answer, None where the function has no opinion.

        Raises:
            EngineError: it raised, or returned something else than one finite number an answer.
        """
        wanted = {
            # A copy: what the function does to its lists is not to reach the trainer's.
            name: list(value) if isinstance(value, list) else value
            for name, value in given.items()
            if self.wanted is None or name in self.wanted
        }
        count = len(given["completions"])
        try:
            result = self.function(**wanted)
        except (Exception, SystemExit) as error:  # a person's own code can raise anything
            raise EngineError(
                f"the reward function {self.name} raised {_tell(error)}"
                f"{self._where(wanted, given, count)}",
                hint="try it by itself on that answer",
            ) from error
        return self._checked(result, given, count)

    def _checked(self, result: Any, given: Mapping[str, Any], count: int) -> list[float | None]:
        """Return the rewards as numbers."""
        try:
            rewards = list(result)
        except TypeError:
            rewards = None
        if rewards is None or len(rewards) != count:
            what = shown(result) if rewards is None else f"{len(rewards)} rewards"
            raise EngineError(
                f"the reward function {self.name} returned {what} for {count} answers",
                hint="return a list with one number for each of `completions`",
            )
        numbers: list[float | None] = []
        for index, reward in enumerate(rewards):
            try:
                number = None if reward is None else float(reward)
            except (TypeError, ValueError, OverflowError):
                number = math.nan
            if number is not None and not math.isfinite(number):
                raise EngineError(
                    f"the reward function {self.name} returned {shown(reward)}, which is no "
                    f"finite number, {_answer(given, index)}",
                    hint="return None for an answer that it cannot judge",
                )
            numbers.append(number)
        return numbers

    def _where(self, wanted: Mapping[str, Any], given: Mapping[str, Any], count: int) -> str:
        """Return the first answer at which the function raises by itself, or nothing."""
        for index in range(count):
            one = {
                name: value[index : index + 1] if isinstance(value, list) else value
                for name, value in wanted.items()
            }
            try:
                self.function(**one)
            except (Exception, SystemExit):  # noqa: BLE001  # that it raises is looked for
                return f" {_answer(given, index)}"
        return ""


def _tell(error: BaseException) -> str:
    """Return kind, message and place of what somebody's code raised."""
    try:
        message = clip(str(error))
    except Exception:  # noqa: BLE001  # its own text can raise, too
        message = "(its message cannot be printed)"
    frames = traceback.extract_tb(error.__traceback__)
    place = f" (at {frames[-1].filename}:{frames[-1].lineno})" if len(frames) > 1 else ""
    return f"{type(error).__name__}: {message}{place}"


def _answer(given: Mapping[str, Any], index: int) -> str:
    """Return which answer to which prompt an entry is."""
    prompt = text_of_answer(given["prompts"][index])
    answer = text_of_answer(given["completions"][index])
    return f"for the answer {shown(answer)} to the prompt {shown(prompt)}"


def find_rewards(
    names: Sequence[str], *, eos_ids: Iterable[int] = (), columns: Iterable[str] | None = None
) -> list[RewardFunction]:
    """Find every reward function, all problems at once.

    Args:
        names: built-in names, `package.module:function` or `package.module.function`. A module may
            lie in the working folder.
        eos_ids: ids that end an answer.
        columns: of the dataset; None where they are not known yet.

    Raises:
        ConfigError: there is none, or one cannot be imported, is no function, or asks for an
            argument that there is not.
    """
    known = built_in(eos_ids)
    if not names:
        raise ConfigError(
            [f"{FLAG}: a function that rewards answers is needed"],
            hint=f"name one or more of {', '.join(known)}, or package.module:function",
        )
    found, problems = [], []
    for name in names:
        try:
            function = known[name] if name in known else _import(name, known)
            found.append(
                RewardFunction(name=name, function=function, wanted=_wanted(function, columns))
            )
        except ValueError as problem:
            problems.append(f"{FLAG} {clip(name)}: {problem}")
    twice = sorted({name for name in names if list(names).count(name) > 1})
    problems += [f"{FLAG} {clip(name)}: is named twice" for name in twice]
    if problems:
        raise ConfigError(problems)
    return found


def _import(name: str, known: Iterable[str]) -> Callable[..., Any]:
    """Return what a dotted path names.

    Raises:
        ValueError: it names nothing that can be called.
    """
    if ".py:" in name:
        stem, _, function_name = Path(name).name.partition(".py:")
        raise ValueError(f"is a path; write {stem}:{function_name}, in the folder of that file")
    module_name, _, attribute = name.replace(":", ".").rpartition(".")
    if not module_name or not all(map(str.isidentifier, [*module_name.split("."), attribute])):
        near = near_names(name, known)
        raise ValueError(
            f"is no built-in reward ({', '.join(known)}) and no package.module:function{near}"
        )
    if os.getcwd() not in sys.path:  # noqa: PTH109  # sys.path holds texts
        sys.path.append(os.getcwd())  # noqa: PTH109
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a person's own module can raise anything
        raise ValueError(
            f"{module_name} cannot be imported: {_tell(error)}; the working folder is searched, too"
        ) from error
    if not hasattr(module, attribute):
        near = near_names(attribute, vars(module))
        raise ValueError(f"the module {module_name} has no '{attribute}'{near}")
    function = getattr(module, attribute)
    if not callable(function):
        raise ValueError(f"is {shown(function)}, which cannot be called")
    called = function if inspect.isroutine(function) else type(function).__call__
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called):
        raise ValueError("is an async function; a plain one is needed")
    result: Callable[..., Any] = function
    return result


def _wanted(function: Callable[..., Any], columns: Iterable[str] | None) -> frozenset[str] | None:
    """Return the keywords that a function takes, or None where it takes any.

    Raises:
        ValueError: it asks for something that it cannot be given.
    """
    parameters = inspect.signature(function).parameters.values()
    by_place = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]
    if by_place:
        raise ValueError(f"takes '{by_place[0]}' by position only; everything is given by keyword")
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if columns is not None:
        given = ALWAYS_GIVEN | {*columns}
        absent = [p.name for p in named if p.default is p.empty and p.name not in given]
        if absent:
            raise ValueError(
                f"asks for '{absent[0]}', which is no column of the dataset; there are "
                f"{', '.join(sorted(given - {'trainer_state', 'log_extra', 'log_metric'}))}"
            )
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return frozenset(p.name for p in named)
