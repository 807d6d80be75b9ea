"""Bugs in what is told of a run afterwards: lies of the provenance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.mutants.form import mutant, part, replaces


def _change_provenance(change: Any) -> None:
    for name in ("accounting", "engine"):

        @replaces(part(name), "make_provenance")
        def make(original: Any, *words: Any) -> Any:
            made = original(*words)
            change(made)
            return made


@mutant("lora", "full", caught_by="MPD405")
def base_fingerprint_wrong() -> None:
    """Record the fingerprint of another base (FM35)."""

    @replaces(part("engine"), "_fingerprint")
    def fingerprint(*_: Any) -> str:
        return "0" * 64


@mutant("lora", "full", caught_by="MPD752")
def label_counts_wrong() -> None:
    """Record that every token was trained."""

    @replaces(part("engine"), "count_labels")
    def count(original: Any, *words: Any) -> Any:
        made = original(*words)
        return replace(made, trained_tokens=made.tokens, samples_ending_in_eos=made.samples)


@mutant("lora", "full", caught_by="MPD752")
def steps_told_wrong() -> None:
    """Record twice as many steps as were taken."""

    @replaces(part("engine"), "progress_of")
    def progress(original: Any, result: Any) -> Any:
        made = original(result)
        return {**made, "steps": made["steps"] * 2}


@mutant("lora", "full", caught_by="MPD752")
def settings_told_wrong() -> None:
    """Record the defaults of the settings, and not what was asked for."""
    _change_provenance(
        lambda made: made["config"].update(learning_rate=None, seed=42, batch_size=1)
    )


@mutant("lora", "full", caught_by="MPD752")
def trained_tensors_told_wrong() -> None:
    """Record fewer trained tensors than there were."""

    @replaces(part("engine"), "describe_trained")
    def describe(original: Any, model: Any) -> Any:
        made = original(model)
        return {**made, "count": made["count"] - 1}


@mutant("qlora-merge", caught_by="MPD707")
def block_size_told_wrong() -> None:
    """Record another block size than the base was quantised with (FM64)."""

    @replaces(part("engine"), "make_record")
    def make(original: Any, *words: Any, **named: Any) -> Any:
        made = original(*words, **named)
        told = made.quantisation
        return replace(made, quantisation={**told, "block_size": told["block_size"] // 2})


@mutant("lora", "full", caught_by="MPD752")
def losses_told_wrong() -> None:
    """Record a final loss that the step log does not have."""

    @replaces(part("engine"), "progress_of")
    def progress(original: Any, result: Any) -> Any:
        made = original(result)
        return {**made, "final_loss": made["final_loss"] * 0.5}


@mutant("lora", "full", caught_by="MPD752")
def template_hash_wrong() -> None:
    """Record the hash of another chat template (FM04)."""
    _change_provenance(lambda made: made.update(chat_template_hash="0" * 16))
