"""Bugs in packed rows and in batches by tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.mutants.form import mutant, part, replaces


@mutant("lora-packing", caught_by="MPD722")
def packing_leaks() -> None:
    """Let every document see those before it in its row (FM38; upstream's PackedCollator)."""
    documents = part("attention.documents")

    @replaces(documents, "_require_blind")
    def blind(*_: Any) -> None:
        return None

    @replaces(documents, "document_attention")
    def attend(original: Any, *words: Any, document_lengths: Any = None, **named: Any) -> Any:
        whole = (sum(document_lengths),) if document_lengths else document_lengths
        return original(*words, document_lengths=whole, **named)


@mutant("lora-packing", caught_by="MPD722 MPD725")
def positions_run_on() -> None:
    """Number the tokens of a packed row from its beginning and not from each document's.

    TRL's collator once did (trl PR#3526).
    """
    import importlib

    torch: Any = importlib.import_module("torch")
    sft = part("methods.sft")

    @replaces(sft, "collate_packed")
    def collate(original: Any, rows: Any) -> Any:
        batch = original(rows)
        batch["position_ids"] = torch.arange(batch["input_ids"].shape[1])[None]
        return batch


@mutant("lora-packing", caught_by="MPD706")
def end_lost_at_the_seam() -> None:
    """Lose the last token of every document where it is joined to the next."""

    @replaces(part("data.packing"), "_join")
    def join(original: Any, samples: Any) -> Any:
        cut = [
            replace(one, input_ids=one.input_ids[:-1], labels=one.labels[:-1]) for one in samples
        ]
        return original(cut)


@mutant("lora-packing-epochs", caught_by="MPD720 MPD725")
def samples_dropped_by_packing() -> None:
    """Leave out what does not fill a row (`drop_remainder`)."""

    @replaces(part("data.packing"), "plan_rows")
    def plan(original: Any, *words: Any, **named: Any) -> Any:
        return original(*words, **named)[:-1]


@mutant("lora-packing-all-tokens", caught_by="MPD722")
def seam_trained() -> None:
    """Train the first token of each document as the successor of the document before."""

    @replaces(part("data.packing"), "_join")
    def join(original: Any, samples: Any) -> Any:
        row = original(samples)
        return replace(row, labels=[label for sample in samples for label in sample.labels])


@mutant("lora-packing", caught_by="MPD712")
def packing_ignored() -> None:
    """Accept `--packing` and give every sample a row of its own."""
    batching = part("methods.batching")

    @replaces(batching, "pack")
    def pack(original: Any, samples: Any, capacity: int, *, seed: int) -> Any:
        return [row for one in samples for row in original([one], capacity, seed=seed)]


@mutant("lora-tokens-per-batch", caught_by="MPD712")
def token_budget_ignored() -> None:
    """Accept `--tokens-per-batch` and count samples."""

    @replaces(part("methods.batching:TokenBatches"), "take_batches")
    def take(*_: Any) -> None:
        return None


@mutant("lora-tokens-per-batch-epochs", caught_by="MPD725")
def samples_dropped_by_budget() -> None:
    """Leave out the last sample of every batch."""

    @replaces(part("data.batches:TokenBudgetSampler"), "__iter__")
    def iterate(original: Any, self: Any) -> Any:
        return (batch[:-1] or batch for batch in original(self))


@mutant("lora-epochs", caught_by="MPD725 MPD719")
def samples_repeated() -> None:
    """Train the first half of the samples twice, and the other half never."""

    @replaces(part("methods.fitting"), "split_samples")
    def split(original: Any, samples: Any, config: Any) -> Any:
        train, held_out = original(samples, config)
        half = train[: (len(train) + 1) // 2]
        return (half + half)[: len(train)], held_out


@mutant("lora-preprocess-workers", caught_by="MPD725")
def part_of_a_worker_lost() -> None:
    """Lose the samples of the last process that prepared some."""

    @replaces(part("engine"), "render_rows")
    def render(original: Any, loaded: Any, samples: Any, config: Any) -> Any:
        rows = original(loaded, samples, config)
        return rows[: len(rows) // 2] if config.preprocess_workers > 1 else rows
