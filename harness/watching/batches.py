"""Listens to what a model is really given while it trains: which tokens, with which targets.

Each sequence is held against an independent rendering of the dataset. What a padded or packed batch
holds is taken apart again, so that a document counts as one sequence wherever it stands.
"""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from harness.observations import LabelsSeen
from harness.watching.truth import BETTER, IGNORED, PROMPT, WORSE, Key, Truth

PAIRED = ("dpo", "ipo", "orpo", "rm")
"""Methods whose batches hold the better answers first, then as many worse ones."""
ENDLESS = ("grpo", "prm")
"""Methods that neither teach nor score the end: answers are generated, steps end in newlines."""
CHECKPOINTS = "checkpoint-*"
MIN_ORDER = 6
"""Sequences from which an order is no accident: one in 720."""


class BatchWatcher:
    """Hooks a model and the trainer above it."""

    def __init__(
        self,
        model: Any,
        method: str,
        truth: Truth | None,
        tokenizer: Any,
        eos_ids: frozenset[int],
        output: Path,
        *,
        batch_size: int,
    ) -> None:
        """Start to listen.

        Args:
            model: the model that is trained.
            method: one of the engine's methods.
            truth: what may be trained on.
            tokenizer: to show what was trained.
            eos_ids: ids that end a turn.
            output: the run's folder, where checkpoints come and go.
            batch_size: rows of a batch; packed ones hold more documents.
        """
        self._model = model
        self._method = method
        self._truth = truth
        self._tokenizer = tokenizer
        self._eos_ids = eos_ids
        self._output = output
        self._batch_size = batch_size
        self._order: list[tuple[int, ...]] = []
        self._counts = dict.fromkeys(("rows", "tokens", "trained", "eos", "off"), 0)
        self._example = ""
        self._given: Mapping[str, Any] = {}
        self._trained: Counter[tuple[int, ...]] = Counter()
        self._held_out: set[tuple[int, ...]] = set()
        self._batches = self._packed = self._widest = self._workers = 0
        self._checkpoints: set[str] = set()
        plain: Any = torch.compiler.disable  # compiled code cannot hold such a function
        self._hook = model.register_forward_pre_hook(plain(self._see), with_kwargs=True)
        self._trainer: Any = transformers.Trainer
        self._step = self._trainer.training_step
        self._trainer.training_step = self._listening(self._step)

    def conclude(self) -> LabelsSeen | None:
        """Stop listening and return what was seen, or None when no batch came."""
        self._hook.remove()
        self._trainer.training_step = self._step
        if not self._counts["rows"]:
            return None
        known = sum(self._truth.expected.values()) if self._truth else 0
        fresh = max(1, known - len(self._held_out))
        passes = -(-sum(self._trained.values()) // fresh)
        return LabelsSeen(
            rows=self._counts["rows"],
            tokens=self._counts["tokens"],
            trained_tokens=self._counts["trained"],
            rows_ending_in_eos=self._counts["eos"],
            rows_off_answer=self._counts["off"],
            example_off_answer=self._example,
            teaches_end=self._method not in ENDLESS,
            checked=self._truth is not None,
            batches=self._batches,
            packed_batches=self._packed,
            widest_batch=self._widest,
            held_out_rows=len(self._held_out),
            # Of rows that stand several times in the data one may be trained, another held out.
            held_out_trained=sum(self._times(i) == 1 for i in self._held_out & set(self._trained)),
            rows_overused=sum(n > passes * self._times(ids) for ids, n in self._trained.items()),
            checkpoints=tuple(sorted(self._checkpoints)),
            workers=self._workers,
            in_file_order=self._in_file_order(),
        )

    def _in_file_order(self) -> bool:
        """Return whether the first sequences came just as the dataset has them."""
        if self._truth is None or self._packed or len(self._order) < MIN_ORDER:
            return False
        filed = [ids for _, ids, _ in self._truth.expected]
        return self._order[: len(filed)] == filed[: len(self._order)]

    def _times(self, ids: tuple[int, ...]) -> int:
        """Return how often the dataset holds a sequence, whatever its targets."""
        if self._truth is None:
            return 1
        return max(1, sum(n for (_, one, _), n in self._truth.expected.items() if one == ids))

    def _listening(self, step: Any) -> Any:
        """Return the trainer's step with an ear on its inputs: classes never reach the model."""

        def training_step(trainer: Any, model: Any, inputs: Any, *words: Any, **named: Any) -> Any:
            self._given = inputs if isinstance(inputs, Mapping) else {}
            self._workers = max(self._workers, len(multiprocessing.active_children()))
            self._checkpoints |= {one.name for one in self._output.glob(CHECKPOINTS)}
            return step(trainer, model, inputs, *words, **named)

        return training_step

    def _see(self, model: nn.Module, args: Any, batch: dict[str, Any]) -> None:
        """Take one batch apart; passes of a reference, of evaluation and of answers are others."""
        del args
        if model is not self._model:  # a copy to compare with has copies of the hooks
            return
        if not model.training:
            if batch.get("labels") is not None or self._method in ("rm", "prm"):
                self._held_out |= {ids for _, ids, _ in self._sequences(batch, "")}
            return
        if not torch.is_grad_enabled() or batch.get("input_ids") is None:
            return
        self._batches += 1
        self._packed += len(batch.get("document_lengths") or ()) > self._batch_size
        self._widest = max(self._widest, batch["input_ids"].numel())
        for key in self._sequences(batch, self._method):
            self._count(key)

    def _sequences(self, batch: Mapping[str, Any], method: str) -> Iterator[Key]:
        """Yield every sequence of a batch, without its padding."""
        ids, labels = batch["input_ids"].cpu(), batch.get("labels")
        if method == "prm":
            labels = self._given.get("labels")
        targets = torch.full_like(ids, IGNORED) if labels is None else labels.cpu()
        mask = batch.get("attention_mask")
        present = torch.ones_like(ids) if mask is None or mask.dim() > 2 else mask.cpu()
        lengths = batch.get("document_lengths")
        if lengths is not None:
            parts = zip(ids[0].split(list(lengths)), targets[0].split(list(lengths)), strict=True)
            yield from (("", *_first_free(x.tolist(), y.tolist())) for x, y in parts)
            return
        for row in range(ids.shape[0]):
            kept = present[row].bool()
            one = ids[row][kept].tolist(), targets[row][kept].tolist()
            yield (self._part(row, ids.shape[0], method), *_first_free(*one))

    def _part(self, row: int, rows: int, method: str) -> str:
        if method in PAIRED:
            return BETTER if row < rows // 2 else WORSE
        if method == "kto" and "label" in self._given:
            return BETTER if bool(self._given["label"][row]) else WORSE
        return PROMPT if method == "grpo" else ""

    def _count(self, key: Key) -> None:
        """Count one sequence, and whether the dataset has it with these very targets."""
        _, ids, targets = key
        self._counts["rows"] += 1
        self._counts["tokens"] += len(ids)
        self._counts["trained"] += sum(target != IGNORED for target in targets)
        is_cut = self._truth is not None and self._truth.cuts(key)
        self._counts["eos"] += is_cut or self._ends(ids, targets)
        self._trained[ids] += self._method != "grpo"
        self._order.append(ids)
        if self._truth is None or self._is_true(key):
            return
        self._counts["off"] += 1
        self._example = self._example or self._show(ids, targets)

    def _is_true(self, key: Key) -> bool:
        assert self._truth is not None
        part, ids, targets = key
        if self._method == "grpo":
            return any(ids[: len(one)] == one for one in self._truth.prompts)
        if self._method == "rm":  # the score is read at the end, and no token is a target
            return any((part, ids) == (one, other) for one, other, _ in self._truth.expected)
        return self._truth.holds((part, ids, targets))

    def _ends(self, ids: tuple[int, ...], targets: tuple[int, ...]) -> bool:
        """Return whether every learnt span ends its turn; a scored text, whether it ends in EOS."""
        if self._method == "rm" or self._method in ENDLESS:
            return ids[-1] in self._eos_ids
        runs = [list(run) for on, run in groupby(targets, lambda x: x != IGNORED) if on]
        ends = [run[-1] in self._eos_ids for run in runs]
        # Where prompts are learnt too, a template may write on behind the last answer.
        is_whole = len(runs) == 1 and len(runs[0]) >= len(ids) - 1
        return bool(runs) and (all(ends) or (is_whole and bool(self._eos_ids & set(runs[0]))))

    def _show(self, ids: tuple[int, ...], targets: tuple[int, ...]) -> str:
        """Return the learnt text in marks, within the whole."""
        text = ""
        for on, run in groupby(zip(ids, targets, strict=True), lambda x: x[1] != IGNORED):
            part = self._tokenizer.decode([token for token, _ in run])
            text += f"[{part}]" if on else part
        return text[:300]


def _first_free(ids: list[int], targets: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return ids and targets; the first token of a text is predicted by nothing."""
    return tuple(ids), (IGNORED, *targets[1:]) if targets else ()
