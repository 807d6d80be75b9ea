"""Bugs in what is trained: which tokens have a label, and which one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.mutants.form import change_rows, change_settings, mutant, part, replaces

IGNORED = -100


@mutant("lora", caught_by="MPD705")
def eos_masked() -> None:
    """Mask the end of every answer on the way to the trainer.

    As a collator does that takes EOS for padding (FM01). The engine has counted the labels by then,
    and believes itself.
    """

    def mask(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for row in rows:
            labels = row["labels"]
            last = [after == IGNORED for after in [*labels[1:], IGNORED]]
            row["labels"] = [IGNORED if end else x for end, x in zip(last, labels, strict=True)]
        return rows

    change_rows(mask)


@mutant("lora", caught_by="MPD706")
def prompt_trained() -> None:
    """Read `response_only` nowhere, and train the prompt as well (FM10; upstream, config.py:78)."""
    change_settings(part("methods.sft"), "make_renderer", response_only=False)


@mutant("lora", "full", caught_by="MPD706")
def labels_off_by_one() -> None:
    """Shift the labels although the model shifts them again.

    Each token then learns to predict the one after the next (FM09).
    """

    def shift(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**row, "labels": [*row["labels"][1:], IGNORED]} for row in rows]

    change_rows(shift)


@mutant("lora-turns", caught_by="MPD706")
def last_turn_only() -> None:
    """Train the last answer of a conversation alone, as `mask_history` does in LLaMA-Factory."""

    @replaces(part("data.render:Renderer"), "_train_only_to_eos")
    def train(original: Any, self: Any, ids: Any, trained: Any) -> Any:
        on = original(self, ids, trained)
        stops = [i for i, x in enumerate(on) if x and not (i and on[i - 1])]
        return [x and i >= stops[-1] for i, x in enumerate(on)]


@mutant("lora", caught_by="MPD722")
def padding_trained() -> None:
    """Label padding with the pad id instead of -100: most targets are then padding (FM40)."""

    @replaces(part("methods.sft:MixedPrecisionSFTTrainer"), "compute_loss")
    def compute_loss(
        original: Any, self: Any, model: Any, inputs: Any, *more: Any, **w: Any
    ) -> Any:
        padding = inputs["attention_mask"] == 0
        inputs["labels"] = inputs["labels"].masked_fill(padding, self.processing_class.pad_token_id)
        return original(self, model, inputs, *more, **w)


@mutant("lora", caught_by="MPD706")
def some_answers_masked() -> None:
    """Find no answer in every other row, so that nothing of it is trained.

    A response marker that is not found (FM09).
    """

    def mask(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for row in rows[::2]:
            row["labels"] = [IGNORED] * len(row["labels"])
        return rows

    change_rows(mask)


@mutant("lora", caught_by="MPD706")
def answer_beginning_masked() -> None:
    """Mask the first token of every answer: the border is found one token too late.

    A response marker that is tokenised otherwise inside a text (unsloth#1128).
    """

    @replaces(part("data.render:Renderer"), "_train_only_to_eos")
    def train(original: Any, self: Any, ids: Any, trained: Any) -> Any:
        on = original(self, ids, trained)
        return [x and bool(i) and on[i - 1] for i, x in enumerate(on)]


@mutant("lora-all-tokens", caught_by="MPD706")
def response_only_always() -> None:
    """Train answers alone although the loss was to cover the prompt.

    As where `--no-response-only` is read nowhere.
    """
    change_settings(part("methods.sft"), "make_renderer", response_only=True)


@mutant("lora-short", caught_by="MPD706")
def length_ignored() -> None:
    """Keep every token, whatever `--max-length` says."""
    change_settings(part("methods.sft"), "make_renderer", max_length=4096)


@mutant("lora-short", caught_by="MPD706")
def cut_at_the_wrong_end() -> None:
    """Cut the beginning of a sample that is too long, and not its end.

    Answers without their question (`truncation_side`).
    """

    @replaces(part("data.render:Renderer"), "label")
    def label(original: Any, self: Any, ids: Any, trained: Any) -> Any:
        whole = original(replace(self, max_length=1 << 30), ids, trained)
        kept = slice(max(0, len(whole.input_ids) - self.max_length), None)
        return replace(
            whole,
            input_ids=whole.input_ids[kept],
            labels=whole.labels[kept],
            truncated=len(whole.input_ids) > self.max_length,
        )
