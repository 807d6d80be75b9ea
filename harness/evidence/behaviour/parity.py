"""Everything a loaded checkpoint is compared with: itself, its base, what it was merged from.

The four runs of a parity verdict are the base, the base again, base + adapter, and merged; what the
base is from itself is the noise that every other difference is held against.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.evidence.behaviour import models as models
from harness.evidence.behaviour.child import Job
from harness.evidence.behaviour.compare import (
    Comparer,
    choose_rows,
    compare_kernels,
    compare_loads,
    compare_with_itself,
    count_nonfinite,
    gap,
    kernel,
    read,
    widen,
)
from harness.facts.forward import Consistency, Gap
from harness.registry import ControlFailed

SCORED_PAIRS = 4
"""Answers that a reward model scores, each with its own prompt and with another one."""


RARE = 12
"""Trained and last tokens that an adapter's row holds, of each at most."""


@dataclass
class Parity:
    """One checkpoint, and what it is compared with."""

    job: Job
    """Which folders are known."""
    loaded: models.Loaded
    """The checkpoint; let go when its base and adapter are read."""
    is_adapter: bool
    """Whether it is an adapter on its base."""
    tokenizer: Any
    """Its tokenizer; None where there is none."""
    comparer: Comparer
    """Makes the comparisons while there is time."""
    load: Callable[[Path], models.Loaded]
    """Loads another model."""
    nonfinite: dict[str, int] = field(default_factory=dict)
    """Rows with logits that are not finite, by kernel."""

    def compare(self, prompts: Sequence[Sequence[int]]) -> Consistency:
        """Make every comparison for which there is something to compare with.

        Args:
            prompts: token ids to read; others are made up where there are too few.
        """
        model, comparer, new = self.loaded.model, self.comparer, self.loaded.new_weights[:20]
        kind = "adapter" if self.is_adapter else "merged" if self.job.adapter else "model"
        if self.loaded.scores:
            return Consistency(
                gaps={}, new_weights=new, kind="scorer", scores=tuple(self._score_all())
            )
        size = getattr(model.config.get_text_config(), "vocab_size", 0) or 1000
        rows = choose_rows(prompts, size)
        if self.is_adapter:
            rows.append(_choose_rare(model))
        with blaming(self.job.path):
            reference = stored = read(model, rows)
            self.nonfinite["default"] = count_nonfinite(stored)
            self._look_under_eager(model, rows)
            was = precision = _precision(model)
            if precision != "float32" and widen(model) is not None:
                reference, precision = read(model, rows), "float32"
                comparer.compare("dtype", lambda: gap(stored, reference, was))
            self._compare_all(rows, reference, precision)
        return Consistency(
            gaps=comparer.gaps,
            nonfinite=self.nonfinite,
            prompts=len(rows),
            new_weights=new,
            not_compared=comparer.not_compared,
            kind=kind,
            stored=was,
        )

    def _look_under_eager(self, model: Any, rows: list[list[int]]) -> None:
        """Count logits that are not finite under the kernel that hides nothing."""
        try:
            with kernel(model, "eager"):
                self.nonfinite["eager"] = count_nonfinite(read(model, rows))
        except models.LOADING_PROBLEMS as problem:
            self.comparer.not_compared["eager"] = str(problem)[:300]

    def _compare_all(self, rows: list[list[int]], reference: list[Any], precision: str) -> None:
        model, comparer, path = self.loaded.model, self.comparer, self.job.path
        if self.is_adapter:
            comparer.compare("base", lambda: gap(_read_bare(model, rows), reference, precision))
        if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
            for name in ("padding", "neighbour", "cache", "kernel"):
                comparer.not_compared[name] = "the adapter puts virtual tokens before the text"
            comparer.compare("repeat", lambda: gap(read(model, rows), reference, precision))
        else:
            compare_with_itself(model, rows, comparer, reference, precision)
            compare_kernels(model, rows, comparer, reference, precision)
        if self.is_adapter:
            compare_loads(model, path, rows, comparer, reference, precision)
        elif self.loaded.new_weights:
            comparer.compare("reload", lambda: self._reload(rows, reference, precision))
        if self.job.adapter is not None and self.job.base is not None and not self.is_adapter:
            self._let_go()
            comparer.compare("merge", lambda: self._compare_merge(rows, reference, precision))

    def _let_go(self) -> None:
        """Make room for another model; the base of an adapter is needed to the end."""
        self.loaded.model = None
        gc.collect()

    def _reload(self, rows: list[list[int]], reference: list[Any], precision: str) -> Gap | None:
        """Load a model again whose files lack parameters, under another seed."""
        import torch

        self._let_go()
        torch.manual_seed((torch.initial_seed() + 1) % 2**31)
        again = self.load(self.job.path).model
        again = again.float() if precision == "float32" else again
        return gap(read(again, rows), reference, precision)

    def _compare_merge(
        self, rows: list[list[int]], merged: list[Any], precision: str
    ) -> Gap | None:
        """Compare a merged model with its base and adapter, and those with the base alone."""
        assert self.job.base is not None
        assert self.job.adapter is not None
        model = models.attach(self.load(self.job.base).model, self.job.adapter)
        if precision == "float32":
            model = model.float()
        with_adapter, without = read(model, rows), _read_bare(model, rows)
        self.comparer.compare("adapter", lambda: gap(with_adapter, without, precision))
        self.comparer.compare("base", lambda: gap(without, merged, precision))
        return gap(merged, with_adapter, precision)

    def _score_all(self) -> Iterator[float]:
        """Score answers of a reward model with their own prompt and with another one."""
        if self.tokenizer is None:
            return
        pairs = list(zip(self.job.prompts, self.job.golds, strict=False))[:SCORED_PAIRS]
        texts = [f"{prompt} {gold}" for prompt, gold in pairs]
        texts += [f"{prompt} {pairs[n - 1][1]}" for n, (prompt, _) in enumerate(pairs)]
        with blaming(self.job.path):
            yield from [_score(self.loaded.model, self.tokenizer, text) for text in texts]


def _choose_rare(model: Any) -> list[int]:
    """Return a row of the tokens that an adapter may have trained alone.

    These are the ones that its settings name and the last ones of the vocabulary, which were added
    last: no prompt has them, and without them such an adapter would seem to do nothing.
    """
    count = model.get_input_embeddings().weight.shape[0]
    settings = getattr(model, "active_peft_config", None)
    named: list[int] = []
    for key in ("trainable_token_indices", "token_indices"):
        value = getattr(settings, key, None)
        for part in value.values() if isinstance(value, dict) else [value]:
            named += [i for i in part or () if type(i) is int and 0 <= i < count]
    return [*named[:RARE], *range(max(0, count - RARE), count)]


def _score(model: Any, tokenizer: Any, text: str) -> float:
    import torch

    ids = torch.tensor([tokenizer(text)["input_ids"]], device=model.device)
    with torch.inference_mode():
        return float(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 0])


@contextmanager
def blaming(path: Path) -> Iterator[None]:
    """Name the checkpoint in whatever a loader raises.

    Raises:
        ControlFailed: it could not be loaded and asked.
    """
    try:
        yield
    except models.LOADING_PROBLEMS as problem:
        raise ControlFailed(f"{path.name} could not be loaded and asked: {problem}") from problem


@contextmanager
def bare(model: Any, is_adapter: bool) -> Iterator[None]:
    """Switch the adapter of a model off for a while, where it has one."""
    if not is_adapter:
        yield
        return
    with model.disable_adapter():
        yield


def _read_bare(model: Any, rows: list[list[int]]) -> list[Any]:
    with bare(model, True):
        return read(model, rows)


def _precision(model: Any) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")
