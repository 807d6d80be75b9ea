"""Bugs in holding samples out and in stopping early."""

from __future__ import annotations

from typing import Any

from harness.mutants.form import change_arguments, mutant, part, replaces


@mutant("lora-early-stopping", caught_by="MPD709 MPD728")
def best_not_restored() -> None:
    """Stop early and keep the last weights."""
    change_arguments(load_best_model_at_end=False)

    @replaces(part("methods.fitting"), "EarlyStoppingCallback")
    def callback(original: Any, **named: Any) -> Any:
        made = original(**named)
        made.on_train_begin = lambda *_, **__: None
        return made


@mutant("lora-early-stopping", caught_by="MPD712")
def trains_on_held_out() -> None:
    """Hold samples out and train on them all the same."""

    @replaces(part("methods.fitting"), "split_samples")
    def split(original: Any, samples: Any, config: Any) -> Any:
        return list(samples), original(samples, config)[1]


@mutant("lora-early-stopping", caught_by="MPD709")
def never_stops() -> None:
    """Accept `--early-stopping` and evaluate to the last step."""

    @replaces(part("methods.fitting"), "EarlyStoppingCallback")
    def callback(original: Any, **named: Any) -> Any:
        del named
        return original(early_stopping_patience=10_000)


@mutant("lora-early-stopping", caught_by="MPD709")
def stops_late() -> None:
    """Wait for one evaluation more than was asked for."""

    @replaces(part("methods.fitting"), "EarlyStoppingCallback")
    def callback(original: Any, *, early_stopping_patience: int) -> Any:
        return original(early_stopping_patience=early_stopping_patience + 1)


@mutant("lora-early-stopping", caught_by="MPD728")
def worst_restored() -> None:
    """Take the largest evaluation loss for the best."""
    change_arguments(greater_is_better=True)


@mutant("lora-early-stopping", caught_by="MPD712")
def evaluates_training_samples() -> None:
    """Evaluate on samples that are trained on."""

    @replaces(part("methods.fitting"), "split_samples")
    def split(original: Any, samples: Any, config: Any) -> Any:
        train, held_out = original(samples, config)
        return train, train[: len(held_out)]


@mutant("lora-early-stopping", caught_by="MPD712 MPD725")
def share_held_out_wrong() -> None:
    """Hold one sample out, whatever share was asked for."""

    @replaces(part("methods.fitting"), "count_held_out")
    def count(original: Any, num_samples: int, config: Any) -> Any:
        return min(1, original(num_samples, config))
