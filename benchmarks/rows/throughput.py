"""Throughput of supervised fine-tuning: against bare TRL, packed against padded.

Every optimizer step of every variant sees the whole set, so that their losses are equal.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.frame import Figures, Plan, Row, Sides, Subject, at_least, at_most, interleave
from benchmarks.models import Shape, Stopwatch, build_model, write_chats

BATCH_SIZE = 8
MAX_LENGTH = 512
STEPS = 2


class Variants:
    """The runs that are compared."""

    def __init__(self, folder: Path, documents: int) -> None:
        self.documents = documents
        shape = Shape(vocabulary=8192, width=256, layers=8, heads=8, positions=MAX_LENGTH)
        self.model = build_model(folder / "model", shape)
        self.dataset = write_chats(folder / "chats.jsonl", documents, MAX_LENGTH // 2)
        self.folder = folder
        self.count = 0
        first = Stopwatch()
        self.reference = self._train(first)
        self.rows = first.rows
        self.lengths = [len(row.input_ids) for row in self.rows]

    def settings(self, **more: Any) -> Any:
        """Return the settings of one run."""
        from mudpuppy.config_check import load_config

        self.count += 1
        given = {
            "model": str(self.model),
            "dataset": self.dataset,
            "output": self.folder / f"out{self.count}",
            "method": "full",
            "precision": "fp32",
            "device": "cpu",
            "max_length": MAX_LENGTH,
            "max_steps": STEPS,
            "batch_size": BATCH_SIZE,
            "gradient_accumulation": self.documents // BATCH_SIZE,
            **more,
        }
        return load_config(given)

    def padded(self) -> Figures:
        """Train with padded batches of samples in random order, the default."""
        return self.ours()

    def packed(self) -> Figures:
        """Train with packed rows."""
        from mudpuppy.data.packing import plan_rows

        rows = len(plan_rows(self.lengths, MAX_LENGTH, seed=42))
        return self.ours(packing=True, batch_size=1, gradient_accumulation=rows)

    def by_tokens(self) -> Figures:
        """Train with batches by tokens."""
        from mudpuppy.data.batches import TokenBudgetSampler

        batches = len(TokenBudgetSampler(self.lengths, 2 * MAX_LENGTH, seed=42))
        return self.ours(tokens_per_batch=2 * MAX_LENGTH, gradient_accumulation=batches)

    def ours(self, **more: Any) -> Figures:
        """Train with the engine."""
        watch = Stopwatch()
        return self._figures(watch, self._train(watch, **more))

    def trl(self) -> Figures:
        """Train the same rows with TRL alone."""
        import torch
        from transformers import AutoModelForCausalLM, PrinterCallback
        from trl import SFTConfig, SFTTrainer

        from mudpuppy.loading import load_tokenizer
        from mudpuppy.methods.fitting import as_dataset, configure, shared_arguments
        from mudpuppy.runtime import choose_runtime

        config = self.settings()
        arguments = shared_arguments(config, choose_runtime(config))
        watch = Stopwatch()
        model = AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32)
        watch.on_prepared(model, None, (), ())
        trainer = SFTTrainer(
            model=model,
            args=configure(
                SFTConfig,
                arguments,
                max_length=MAX_LENGTH,
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            train_dataset=as_dataset(self.rows),
            processing_class=load_tokenizer(str(self.model), False),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        watch.on_fitted(model)
        losses = [one["loss"] for one in trainer.state.log_history if "loss" in one]
        return self._figures(watch, losses)

    def _train(self, watch: Stopwatch, **more: Any) -> list[float]:
        from mudpuppy.engine import train

        losses: list[float] = []
        train(
            self.settings(**more),
            watcher=watch,
            report=lambda step, _: losses.append(float(step.loss or 0.0)),
        )
        return losses

    def _figures(self, watch: Stopwatch, losses: Sequence[float]) -> Figures:
        pairs = zip(losses, self.reference, strict=True)
        off = max(abs(mine - theirs) / theirs for mine, theirs in pairs)
        return {"wall_s": watch.wall_s, "cpu_s": watch.cpu_s, "off": off}

    def padding(self) -> float:
        """Return the share of padding in batches of samples in random order, over many orders."""
        chance = random.Random(0)
        shares = []
        for _ in range(200):
            order = chance.sample(self.lengths, len(self.lengths))
            batches = [order[i : i + BATCH_SIZE] for i in range(0, len(order), BATCH_SIZE)]
            shares.append(1 - sum(order) / sum(max(b) * len(b) for b in batches))
        return statistics.mean(shares)


def measure(plan: Plan) -> Sides:
    """Train in every way, in turn."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    variants = Variants(plan.folder, documents=plan.pick(full=24, quick=8))
    plan.facts["set"] = f"{variants.documents} conversations, {sum(variants.lengths)} tokens"
    plan.facts["padding in random order"] = f"{variants.padding():.0%}"
    plan.rounds = min(plan.rounds, 3)
    return interleave(
        plan,
        {
            "TRL": variants.trl,
            "padded": variants.padded,
            "by tokens": variants.by_tokens,
            "packed": variants.packed,
        },
        is_warmed=False,  # the first run of all was
    )


SUBJECT = Subject(
    name="throughput",
    title="Supervised fine-tuning, the time from the first forward pass to the last step",
    measure=measure,
    in_quick=False,
    rows=(
        Row(
            name="ours-vs-trl",
            what="padded batches, ours",
            ours="padded",
            against="TRL",
            goal=at_least(0.95),
        ),
        Row(
            name="packed",
            what="packed rows",
            ours="packed",
            against="padded",
            goal=at_least(2.5),
        ),
        Row(
            name="by-tokens",
            what="batches by tokens",
            ours="by tokens",
            against="padded",
            goal=None,
        ),
        *(
            Row(
                name=f"equal-{side.replace(' ', '-')}",
                what=f"relative difference of the losses: {side}",
                ours=side,
                against=None,
                figure="off",
                goal=at_most(1e-5),
            )
            for side in ("TRL", "packed", "by tokens")
        ),
    ),
)
