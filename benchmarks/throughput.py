"""Throughput of supervised fine-tuning: against bare TRL, packed against padded, loss in chunks.

    make bench-throughput   or   python -m benchmarks.throughput [--rounds 5] [--threads 1]

One process, a fixed number of threads, all variants in turn in every round. Neighbours on the
machine move times by a factor of two, so only ratios within a round are compared, by their minimum
and median. Goals are judged in processor time, which neighbours disturb least.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PrinterCallback
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

from benchmarks.loss import bench_loss
from benchmarks.rounds import Run, compare, interleave
from mudpuppy.config import TrainingConfig
from mudpuppy.config_check import load_config
from mudpuppy.data.batches import TokenBudgetSampler
from mudpuppy.data.packing import plan_rows
from mudpuppy.engine import train
from mudpuppy.loading import load_tokenizer
from mudpuppy.methods.fitting import as_dataset, configure, shared_arguments
from mudpuppy.provenance import package_versions
from mudpuppy.runtime import choose_runtime
from mudpuppy.tiny.build import save_folder
from mudpuppy.tiny.corpus import conversations
from mudpuppy.tiny.tokenizer import train_tokenizer

RESULTS = Path(__file__).parent / "results"
NUM_DOCUMENTS = 24
BATCH_SIZE = 8
MAX_LENGTH = 512
STEPS = 2
GOALS = {"ours / TRL": 0.95, "packed / padded": 2.5, "chunked / full logits": 2.0}
"""Smallest ratio of speeds that is promised: the median, in processor time."""


@dataclass
class Stopwatch:
    """A watcher of the engine that times training from its first forward pass to its last step.

    What comes once, such as making the trainer, is left out: it takes as long as a step does here.
    """

    rows: list[Any] = field(default_factory=list)
    wall_s: float = 0.0
    cpu_s: float = 0.0
    is_running: bool = False

    def on_prepared(self, model: Any, tokenizer: Any, samples: Any, eos_ids: Any) -> None:
        """Be ready to start."""
        self.rows = list(samples)
        model.register_forward_pre_hook(self.start)

    def start(self, *_: Any) -> None:
        """Start, at the first of many calls."""
        if not self.is_running:
            self.is_running = True
            self.wall_s, self.cpu_s = time.perf_counter(), time.process_time()

    def on_fitted(self, model: Any) -> None:
        """Stop."""
        self.wall_s = time.perf_counter() - self.wall_s
        self.cpu_s = time.process_time() - self.cpu_s


def build(folder: Path) -> tuple[Path, Path]:
    """Write a random Llama in which products dominate, and conversations of very varied length."""
    texts = [message["content"] for one in conversations() for message in one]
    tokenizer = train_tokenizer(texts, 1024)
    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    save_folder(folder / "model", LlamaForCausalLM(settings), tokenizer)
    chance = random.Random(7)
    words = " ".join(texts).split()
    path = folder / "chats.jsonl"
    with path.open("w", encoding="utf-8") as handle:
        for _ in range(NUM_DOCUMENTS):
            # about 1.5 tokens a word; lognormal lengths, as instruction data have them
            number = min(MAX_LENGTH // 2, max(4, round(chance.lognormvariate(math.log(35), 1.6))))
            answer = " ".join(chance.choices(words, k=number))
            messages = [("user", "Tell me something."), ("assistant", answer)]
            line = {"messages": [{"role": role, "content": text} for role, text in messages]}
            handle.write(json.dumps(line) + "\n")
    return folder / "model", path


class Variants:
    """The runs that are compared: every optimizer step sees the whole set, so losses are equal."""

    def __init__(self, folder: Path, method: str) -> None:
        self.model, self.dataset = build(folder)
        self.folder = folder
        self.method = method
        self.count = 0
        self.padded(first := Stopwatch())
        self.rows = first.rows
        self.lengths = [len(row.input_ids) for row in self.rows]

    def settings(self, **more: Any) -> TrainingConfig:
        """Return the settings of one run."""
        self.count += 1
        given = {
            "model": str(self.model),
            "dataset": self.dataset,
            "output": self.folder / f"out{self.count}",
            "method": self.method,
            "precision": "fp32",
            "device": "cpu",
            "max_length": MAX_LENGTH,
            "max_steps": STEPS,
            "batch_size": BATCH_SIZE,
            "gradient_accumulation": NUM_DOCUMENTS // BATCH_SIZE,
            **more,
        }
        return load_config(given)

    def ours(self, watch: Stopwatch | None = None, **more: Any) -> Run:
        """Train with the engine."""
        watch = watch or Stopwatch()
        losses: list[float] = []
        train(
            self.settings(**more),
            watcher=watch,
            report=lambda step, _: losses.append(float(step.loss or 0.0)),
        )
        return Run(watch.wall_s, watch.cpu_s, losses)

    def padded(self, watch: Stopwatch | None = None) -> Run:
        """Train with padded batches of samples in random order, the default."""
        return self.ours(watch)

    def packed(self) -> Run:
        """Train with packed rows."""
        rows = len(plan_rows(self.lengths, MAX_LENGTH, seed=42))
        return self.ours(packing=True, batch_size=1, gradient_accumulation=rows)

    def by_tokens(self) -> Run:
        """Train with batches by tokens."""
        batches = len(TokenBudgetSampler(self.lengths, 2 * MAX_LENGTH, seed=42))
        return self.ours(tokens_per_batch=2 * MAX_LENGTH, gradient_accumulation=batches)

    def trl(self) -> Run:
        """Train the same rows with TRL alone."""
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
        return Run(watch.wall_s, watch.cpu_s, losses)

    def padding(self) -> float:
        """Return the share of padding in batches of samples in random order, over many orders."""
        chance = random.Random(0)
        shares = []
        for _ in range(200):
            order = chance.sample(self.lengths, len(self.lengths))
            batches = [order[i : i + BATCH_SIZE] for i in range(0, len(order), BATCH_SIZE)]
            shares.append(1 - sum(order) / sum(max(b) * len(b) for b in batches))
        return statistics.mean(shares)


def bench_training(rounds: int) -> dict[str, Any]:
    """Compare training runs with each other."""
    with tempfile.TemporaryDirectory() as folder:
        variants = Variants(Path(folder), "full")
        runs = interleave(
            {
                "trl": variants.trl,
                "padded": variants.padded,
                "by tokens": variants.by_tokens,
                "packed": variants.packed,
            },
            rounds,
        )
        tokens = sum(variants.lengths) * STEPS
        padding = variants.padding()
    reference = runs["padded"][0].losses
    return {
        "documents": NUM_DOCUMENTS,
        "tokens_per_step": tokens // STEPS,
        "padding": padding,
        "tokens_per_second": {
            name: tokens / min(run.wall_s for run in some) for name, some in runs.items()
        },
        "ratios": {
            "ours / TRL": compare(runs["padded"], runs["trl"]),
            "by tokens / padded": compare(runs["by tokens"], runs["padded"]),
            "packed / padded": compare(runs["packed"], runs["padded"]),
        },
        "largest_relative_loss_difference": {
            name: max(
                abs(mine - theirs) / theirs
                for run in some
                for mine, theirs in zip(run.losses, reference, strict=True)
            )
            for name, some in runs.items()
        },
    }


def describe(results: dict[str, Any]) -> str:
    """Return the results as a short page."""
    training, loss = results["training"], results["loss"]
    rows = [
        [name, GOALS.get(name, ""), *(f"{ratio[key]:.2f}" for key in ratio)]
        for part in (training, loss)
        for name, ratio in part["ratios"].items()
    ]
    head = ["times as fast", "goal (cpu median)", "min", "median", "cpu min", "cpu median"]
    speeds = [[name, round(value)] for name, value in training["tokens_per_second"].items()]
    memory = [
        [name, f"{loss['seconds'][name]:.2f}", round(peak)]
        for name, peak in loss["peak_mb"].items()
    ]
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    return "\n\n".join(
        [
            "# Throughput of supervised fine-tuning",
            f"{results['rounds']} interleaved rounds, {results['threads']} thread(s) of "
            f"{results['cores']} cores, fp32 on the CPU; {versions}.",
            tabulate(rows, head, tablefmt="github"),
            f"Training: {training['documents']} conversations, {training['tokens_per_step']} "
            f"tokens a step, {training['padding']:.0%} padding in batches of {BATCH_SIZE} in "
            "random order. Losses of all variants differ by at most "
            f"{max(training['largest_relative_loss_difference'].values()):.1e}.",
            tabulate(speeds, ["variant", "real tokens/s (best)"], tablefmt="github"),
            f"Loss: {loss['tokens']} tokens, {loss['masked']:.0%} of them masked, a vocabulary of "
            f"{loss['vocabulary']}, forward and backward.",
            tabulate(memory, ["loss", "seconds (best)", "peak MB"], tablefmt="github"),
            "",
        ]
    )


def main() -> int:
    """Run, print and keep the results; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--part", choices=("loss", "training"), help="measure this alone again")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    kept = RESULTS / "throughput.json"
    results: dict[str, Any] = json.loads(kept.read_text()) if options.part else {}
    results |= {
        "rounds": options.rounds,
        "threads": options.threads,
        "cores": os.cpu_count(),
        "versions": package_versions(),
    }
    for part, bench in (("loss", bench_loss), ("training", bench_training)):
        if options.part in (None, part):
            results[part] = bench(options.rounds)
    page = describe(results)
    print(page)
    if not options.no_write:
        RESULTS.mkdir(exist_ok=True)
        kept.write_text(json.dumps(results, indent=2) + "\n")
        (RESULTS / "throughput.md").write_text(page.rstrip() + "\n")
    ratios = {**results["training"]["ratios"], **results["loss"]["ratios"]}
    missed = [name for name, goal in GOALS.items() if ratios[name]["cpu_median"] < goal]
    worst = max(results["training"]["largest_relative_loss_difference"].values())
    if worst > 1e-5:
        missed.append(f"equal losses ({worst:.1e})")
    print("missed: " + ", ".join(missed) if missed else "all goals reached")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
