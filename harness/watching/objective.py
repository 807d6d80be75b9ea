"""What a method tries to lower, measured on the same rows before and after training.

Computed here from log-probabilities, scores or classes; the trainer's own loss is not consulted:

    full, lora, qlora, qat, multimodal   negative log-likelihood a labelled token
    orpo        that of the better answer, minus beta log sigmoid of the log odds ratio
    dpo, ipo    loss of the margin between both answers against the model before training
    kto         the same for single answers, with the distance to the reference taken as 0
    rm          negative log sigmoid of the difference of both scores
    prm         cross-entropy of the judged steps
    with rows to forget: that of kept rows less that of forgotten ones, or NPO's part for them
    grpo, gptq  none: a reward is logged step by step; what is quantised is not trained
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from harness.watching.logits import asking, device_of
from harness.watching.rows import IGNORED, Asked, sequences_of

NUM_ROWS = 16
"""Rows that are measured, from the start of the set."""
MAX_LOGITS = 1 << 26
"""Logits that exist at a time: 256 MB in fp32."""
BETA = 0.1
"""Default of DPO, IPO, KTO and ORPO in TRL."""
WITHOUT = ("grpo", "gptq")
"""Methods that have no objective on given rows."""


class Objective:
    """The objective of one run, on its first rows."""

    def __init__(
        self,
        method: str,
        rows: Sequence[Any],
        *,
        beta: float | None = None,
        unlearn: str = "none",
        processor: Any = None,
    ) -> None:
        """Choose the rows.

        Args:
            method: one of the engine's methods.
            rows: the engine's rows.
            beta: the run's beta; by default TRL's.
            unlearn: how the run forgets rows that are marked.
            processor: of text and images, for rows with images.
        """
        self._method = method
        self._beta = BETA if beta is None else beta
        kept = [] if method in WITHOUT else list(rows[:NUM_ROWS])
        self._unlearn = unlearn
        self._forgets = [bool(getattr(row, "forget", False)) for row in kept]
        self._labels = [bool(getattr(row, "label", True)) for row in kept]
        self._rows = [sequences_of(row, processor) for row in kept]
        self._reference: list[list[float]] | None = None

    def measure_control(self, model: Any) -> tuple[float | None, float]:
        """Measure the untouched model twice, in another order the second time.

        Returns:
            The objective, and how far apart the two are: what a step with learning rate 0 changes.
        """
        if not self._rows:
            return None, 0.0
        found = self._ask(model, self._rows)
        self._reference = found
        first = self._conclude(found)
        again = self._conclude(self._ask(model, self._rows[::-1])[::-1])
        if first is None or again is None:
            return None, 0.0
        return first, abs(first - again)

    def measure(self, model: Any) -> float | None:
        """Return the objective, or None where there is none or it is not finite."""
        return self._conclude(self._ask(model, self._rows)) if self._rows else None

    def _ask(self, model: Any, rows: Sequence[tuple[Asked, ...]]) -> list[list[float]]:
        """Return a number for each sequence of each row: a summed log-probability, or a score."""
        flat = [one for row in rows for one in row]
        score = _SCORERS.get(self._method, _log_probability)
        with asking(model):
            found = [x for group in _groups(model, flat) for x in _scores(model, group, score)]
        numbers = iter(found)
        return [[next(numbers) for _ in row] for row in rows]

    def _conclude(self, found: list[list[float]]) -> float | None:
        """Turn the numbers of all rows into the objective."""
        counts = [[_count(one) for one in row] for row in self._rows]
        if self._method in ("dpo", "ipo", "kto"):
            assert self._reference is not None
            gained = [
                [a - b for a, b in zip(x, y, strict=True)]
                for x, y in zip(found, self._reference, strict=True)
            ]
            losses = [
                self._compared(*item) for item in zip(gained, counts, self._labels, strict=True)
            ]
        elif self._method == "rm":
            losses = [_softplus(worse - better) for better, worse in found]
        elif self._method == "orpo":
            pairs = zip(found, counts, strict=True)
            losses = [self._odds([x / n for x, n in zip(*pair, strict=True)]) for pair in pairs]
        elif self._unlearn != "none":
            losses = self._weigh_groups([row[0] for row in found], sum(row[0] for row in counts))
        else:
            total = sum(count for row in counts for count in row)
            losses = [-sum(x for row in found for x in row) / max(total, 1)]
        mean = sum(losses) / len(losses)
        return mean if math.isfinite(mean) else None

    def _weigh_groups(self, found: list[float], count: int) -> list[float]:
        """Return the objective a token: kept rows likely, and forgotten ones not."""
        assert self._reference is not None
        total = 0.0
        for said, was, forgets in zip(found, self._reference, self._forgets, strict=True):
            if forgets and self._unlearn == "npo":
                total += 2 / self._beta * _softplus(self._beta * (said - was[0]))
            else:
                total += said if forgets else -said
        return [total / max(count, 1)]

    def _compared(self, gained: list[float], counts: list[int], label: bool) -> float:
        """Return the loss of one row, whose answers have gained so much over the reference."""
        if self._method == "kto":
            sign = 1.0 if label else -1.0
            return 1.0 - _sigmoid(sign * self._beta * gained[0])
        if self._method == "ipo":
            better, worse = (x / max(n, 1) for x, n in zip(gained, counts, strict=True))
            return (better - worse - 1 / (2 * self._beta)) ** 2
        return _softplus(-self._beta * (gained[0] - gained[1]))

    def _odds(self, means: list[float]) -> float:
        """Return ORPO's loss of one row from the mean log-probabilities of both answers."""
        better, worse = (min(x, -1e-6) for x in means)
        ratio = better - worse - math.log(-math.expm1(better)) + math.log(-math.expm1(worse))
        return -better + self._beta * _softplus(-ratio)


def _count(one: Asked) -> int:
    """Return the scored tokens; the first of a text is predicted by nothing."""
    return sum(target != IGNORED for target in one.targets[1:])


def _groups(model: Any, flat: Sequence[Asked]) -> list[list[Asked]]:
    """Return what is asked at once: rows with pixels alone, others while their logits fit."""
    if any(one.extra for one in flat):
        return [[one] for one in flat]
    width = max(len(one.ids) for one in flat) * int(getattr(model.config, "vocab_size", 1 << 17))
    size = max(1, min(len(flat), MAX_LOGITS // width))
    return [list(flat[i : i + size]) for i in range(0, len(flat), size)]


def _scores(
    model: Any, group: Sequence[Asked], score: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> list[float]:
    """Ask for a group at once, padded on the right, which no earlier token sees."""
    width = max(len(one.ids) for one in group)
    device = device_of(model)
    ids = torch.zeros(len(group), width, dtype=torch.long)
    targets, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    for row, one in enumerate(group):
        length = len(one.ids)
        ids[row, :length] = torch.tensor(one.ids)
        targets[row, :length] = torch.tensor(one.targets)
        mask[row, :length] = 1
    extra = {name: torch.as_tensor(value).to(device) for name, value in group[0].extra.items()}
    pad = getattr(model.config.get_text_config(), "pad_token_id", None)
    if pad is not None:
        ids[mask == 0] = pad  # a model that scores rows finds their last token by it
    output = model(input_ids=ids.to(device), attention_mask=mask.to(device), **extra)
    scored: list[float] = score(output.logits.float().cpu(), targets, mask).tolist()
    return scored


def _log_probability(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Return the summed log-probability of the labelled tokens of each row."""
    del mask
    return -_cross_entropy(logits[:, :-1], targets[:, 1:])


def _verdict(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Return the summed log-probability of the right class where a step is judged."""
    del mask
    return -_cross_entropy(logits, targets)


def _score(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Return the score of each row."""
    del targets, mask
    return logits.reshape(-1)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    flat = functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]),
        targets.reshape(-1),
        ignore_index=IGNORED,
        reduction="none",
    )
    return flat.view(targets.shape).sum(-1)


_SCORERS = {"rm": _score, "prm": _verdict}


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _sigmoid(x: float) -> float:
    return math.exp(-_softplus(-x))
