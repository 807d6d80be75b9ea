"""The losses of all methods, from their papers, on one sequence after the other.

Nothing is padded and nothing is packed here: each answer is a forward pass of its own. In fp8,
where one scale is shared by a whole batch, the rows are padded as they were recorded.

    sft     negative log-likelihood a labelled token
    dpo     -log sigmoid(beta (log ratio better - log ratio worse))           Rafailov et al. 2023
    ipo     ((mean ratio better - mean ratio worse) - 1 / (2 beta))^2         Azar et al. 2023
    kto     1 - sigmoid(+-beta (log ratio - KL)), KL = max(0, mean of stand-ins)  Ethayarajh 2024
    orpo    NLL of the better - beta log sigmoid(log odds ratio)              Hong et al. 2024
    rm      -log sigmoid(score better - score worse)                          Bradley-Terry
    prm     cross entropy of right and wrong where a step ends
    groups  (NLL of kept rows + kl KL(base || model) there + weight U) / labels, where U is
            -min(NLL, ln V) a token (ascent), or 2/beta log(1 + (p / p_base)^beta) a row (NPO)
                                                       Maini et al. 2024, Zhang et al. 2024
    grpo    clipped policy gradient a token, + beta ratio KL (k3)             Shao et al. 2024,
                                                                     DeepSeek-V3.2, arXiv 2512.02556
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from harness.twin.asked import REFERENCED, Asked
from harness.twin.models import COMPUTED_IN, put, trained_tensors
from harness.twin.ranges import has_ranges
from harness.twin.rows import IGNORED, Answer, Row

CLIP = 0.2
"""How far GRPO lets the ratio of probabilities go."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a micro-batch is divided by, so that those of a step add up to its mean."""

    items: int
    """Labels of the whole step (tokens, or steps that are judged)."""
    batches: int
    """Micro-batches of the step."""


def count_items(rows: Sequence[Row]) -> int:
    """Return the labels of rows; the first token is predicted by nothing."""
    return sum(x != IGNORED for row in rows for x in row.answers[0].labels[1:])


class Objective:
    """Computes the loss of a method on a model."""

    def __init__(self, asked: Asked, model: nn.Module) -> None:
        self._asked = asked
        self._model = model
        self._dtype = COMPUTED_IN[asked.precision]
        self._together = asked.precision == "fp8" or has_ranges(asked)
        self._beta = asked.reference_weight
        self._reference: dict[tuple[int, ...], Tensor] = {}
        self._initial: Mapping[str, Tensor] = {}
        self.size = 0.0
        """What the losses so far are made of: where rows are forgotten, parts have both signs."""

    @torch.no_grad()
    def refer(self, initial: Mapping[str, Tensor], batches: Sequence[Sequence[Row]]) -> None:
        """Keep the log-probabilities of the reference: the weights before the first step."""
        is_bound = self._asked.method == "grpo" and self._beta > 0
        is_bound = is_bound or self._asked.tells_groups_apart
        if self._asked.method not in REFERENCED and not is_bound:
            return
        self._initial = initial
        put(trained_tensors(self._model), initial)
        for rows in batches:
            answers = [answer for row in rows for answer in row.answers]
            for answer, found in zip(answers, self._score(rows), strict=True):
                self._reference.setdefault(answer.ids, found)

    def loss(self, rows: Sequence[Row], share: Share) -> Tensor:
        """Return the loss of a micro-batch, as it enters the sum of its step."""
        method = self._asked.method
        if method == "prm":
            return self._judge_steps(rows) / share.items
        if method == "rm":
            better, worse = self._rewards(rows)
            return -functional.logsigmoid(better - worse).mean() / share.batches
        if self._asked.tells_groups_apart:
            return self._weigh_groups(rows, share)
        scores = self._score(rows)
        if method == "grpo":
            return self._reinforce(rows, scores) / share.items
        if method == "kto":
            return self._weigh(rows, scores).mean() / share.batches
        if method in ("dpo", "ipo", "orpo"):
            pairs = list(zip(rows, scores[0::2], scores[1::2], strict=True))
            losses = [self._compare(*pair) for pair in pairs]
            return torch.stack(losses).mean() / share.batches
        return -torch.stack([score.sum() for score in scores]).sum() / share.items

    def _autocast(self) -> Any:
        if self._dtype == torch.float32:
            return nullcontext()
        return torch.autocast("cpu", self._dtype)

    def _logits(self, rows: Sequence[Row]) -> list[Tensor]:
        """Return the logits (tokens, vocabulary or classes) of every answer, in fp32."""
        answers = [(answer, row) for row in rows for answer in row.answers]
        model: Any = self._model
        with self._autocast():
            if self._together:
                return self._padded([answer for answer, _ in answers], rows)
            return [
                model(input_ids=torch.tensor([answer.ids]), use_cache=False, **_images([row]))
                .logits[0]
                .float()
                for answer, row in answers
            ]

    def _padded(self, answers: Sequence[Answer], rows: Sequence[Row]) -> list[Tensor]:
        ids = [torch.tensor(answer.ids) for answer in answers]
        mask = pad_sequence([torch.ones_like(one) for one in ids], batch_first=True)
        model: Any = self._model
        found = model(
            input_ids=pad_sequence(
                ids,
                batch_first=True,
                padding_value=model.config.get_text_config().pad_token_id or 0,
            ),
            attention_mask=mask,
            use_cache=False,
            **_images(rows),
        ).logits.float()
        if found.dim() == 2:
            return list(found)
        return [row[: len(one)] for row, one in zip(found, ids, strict=True)]

    def _score(self, rows: Sequence[Row]) -> list[Tensor]:
        """Return the log-probability of every labelled token of every answer."""
        answers = [answer for row in rows for answer in row.answers]
        return [
            _score_labels(logits, answer.labels, self._temperature)
            for answer, logits in zip(answers, self._logits(rows), strict=True)
        ]

    @property
    def _temperature(self) -> float:
        return float(self._asked.temperature) if self._asked.method == "grpo" else 1.0

    def _ratio(self, answer: Answer, score: Tensor) -> Tensor:
        """Return the log ratio of an answer's tokens to the reference."""
        return score - self._reference[answer.ids]

    def _compare(self, row: Row, better: Tensor, worse: Tensor) -> Tensor:
        if self._asked.method == "orpo":
            return self._odds(row, better, worse)
        good, bad = (self._ratio(a, s) for a, s in zip(row.answers, (better, worse), strict=True))
        if self._asked.method == "ipo":
            return (good.mean() - bad.mean() - 1 / (2 * self._beta)) ** 2
        return -functional.logsigmoid(self._beta * (good.sum() - bad.sum()))

    def _odds(self, row: Row, better: Tensor, worse: Tensor) -> Tensor:
        likely = better.mean()
        if not self._asked.response_only:
            whole = Answer(ids=row.answers[0].ids, labels=row.answers[0].ids)
            likely = self._score([Row(answers=(whole,))])[0].mean()
        good, bad = (s.mean() - torch.log(-torch.expm1(s.mean())) for s in (better, worse))
        return -likely - self._beta * functional.logsigmoid(good - bad)

    def _weigh(self, rows: Sequence[Row], scores: Sequence[Tensor]) -> Tensor:
        said, stand_ins = scores[0::2], scores[1::2]
        with torch.no_grad():
            apart = [
                self._ratio(row.answers[1], s).sum() for row, s in zip(rows, stand_ins, strict=True)
            ]
            drift = torch.stack(apart).mean().clamp(min=0)
        ratios = [self._ratio(row.answers[0], s).sum() for row, s in zip(rows, said, strict=True)]
        signs = [1.0 if row.is_good else -1.0 for row in rows]
        return torch.stack(
            [
                1 - torch.sigmoid(sign * self._beta * (ratio - drift))
                for sign, ratio in zip(signs, ratios, strict=True)
            ]
        )

    def _reinforce(self, rows: Sequence[Row], scores: Sequence[Tensor]) -> Tensor:
        total = []
        for row, score in zip(rows, scores, strict=True):
            gain = row.extras["advantage"]
            ratio = torch.exp(score - row.extras.get("old_per_token_logps", score.detach()))
            loss = -torch.min(ratio * gain, ratio.clamp(1 - CLIP, 1 + CLIP) * gain)
            if self._beta:
                away = -self._ratio(row.answers[0], score)
                # The ratio is 1, and its slope makes that of the sum the slope of the reverse KL.
                loss = loss + self._beta * ratio * (torch.exp(away) - away - 1)
            total.append(loss.sum())
        return torch.stack(total).sum()

    def _weigh_groups(self, rows: Sequence[Row], share: Share) -> Tensor:
        """Return the share of a step that all rows are kept or forgotten for."""
        every = self._logits(rows)
        before = self._untrained(rows) if self._asked.retain_kl > 0 else every
        total = []
        for row, logits, was in zip(rows, every, before, strict=True):
            answer = row.answers[0]
            score = _score_labels(logits, answer.labels, 1.0)
            if row.forgets and self._asked.unlearn != "none":
                total.append(
                    float(self._asked.unlearn_weight) * self._forget(answer, score, logits)
                )
                continue
            loss = -score.sum()
            if not row.forgets and self._asked.retain_kl > 0:
                places = [i for i, x in enumerate(answer.labels[1:]) if x != IGNORED]
                chances = was[places].softmax(-1)
                logs = logits[places].log_softmax(-1)
                away = functional.kl_div(logs, chances, reduction="sum")
                loss = loss + float(self._asked.retain_kl) * away
            total.append(loss)
        parts = torch.stack(total)
        self.size += float(parts.detach().abs().sum()) / share.items
        return parts.sum() / share.items

    def _forget(self, answer: Answer, score: Tensor, logits: Tensor) -> Tensor:
        """Return what a row to forget adds: less, the less likely it is."""
        if self._asked.unlearn == "gradient-ascent":
            chance = -math.log(logits.shape[-1])
            return torch.where(score > chance, score, torch.full_like(score, chance)).sum()
        ratio = self._ratio(answer, score).sum()
        return -2 / self._beta * functional.logsigmoid(-self._beta * ratio)

    @torch.no_grad()
    def _untrained(self, rows: Sequence[Row]) -> list[Tensor]:
        """Return the logits of the weights before the first step; those of now are put back."""
        trained = trained_tensors(self._model)
        kept = {name: tensor.detach().clone() for name, tensor in trained.items()}
        for name, tensor in trained.items():
            tensor.data.copy_(self._initial[name])
        try:
            return self._logits(rows)
        finally:
            for name, tensor in trained.items():
                tensor.data.copy_(kept[name])

    def _judge_steps(self, rows: Sequence[Row]) -> Tensor:
        losses = []
        for row, logits in zip(rows, self._logits(rows), strict=True):
            classes = torch.tensor(row.answers[0].labels)
            losses.append(
                functional.cross_entropy(logits, classes, ignore_index=IGNORED, reduction="sum")
            )
        return torch.stack(losses).sum()

    def _rewards(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        scores = torch.stack([logits.reshape(()) for logits in self._logits(rows)])
        return scores[0::2], scores[1::2]


def _images(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Return what the model sees beside the text of the rows."""
    names = {n for row in rows for n in row.extras if n.startswith(("pixel", "image"))}
    return {n: torch.cat([row.extras[n] for row in rows]) for n in sorted(names)}


def _score_labels(logits: Tensor, labels: Sequence[int], temperature: float) -> Tensor:
    """Return the log-probabilities of the labels, each predicted one token before."""
    targets = torch.tensor(labels[1:])
    places = (targets != IGNORED).nonzero()[:, 0]
    spread = functional.log_softmax(logits[:-1][places] / temperature, dim=-1)
    return spread.gather(-1, targets[places][:, None])[:, 0]
