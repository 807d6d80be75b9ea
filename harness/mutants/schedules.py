"""Bugs in the learning rate and in how long a run is."""

from __future__ import annotations

from typing import Any

from harness.mutants.form import change_arguments, mutant, part, replaces


@mutant("lora-cosine", caught_by="MPD712")
def scheduler_ignored() -> None:
    """Declare a schedule and never pass it on."""
    change_arguments(lr_scheduler_type="linear")


@mutant("lora-warmup", caught_by="MPD712")
def warmup_ignored() -> None:
    """Accept a warm-up and begin with the full rate."""
    change_arguments(warmup_steps=0)


@mutant("lora", caught_by="MPD712")
def one_step_too_few() -> None:
    """Take one step fewer than asked for."""

    @replaces(part("methods.fitting"), "shared_arguments")
    def arguments(original: Any, config: Any, runtime: Any) -> Any:
        made = original(config, runtime)
        return {**made, "max_steps": made["max_steps"] - 1}


@mutant("lora-epochs", caught_by="MPD725 MPD724")
def epochs_rounded() -> None:
    """Train whole epochs only: the half one at the end is dropped."""

    @replaces(part("methods.fitting"), "shared_arguments")
    def arguments(original: Any, config: Any, runtime: Any) -> Any:
        made = original(config, runtime)
        return {**made, "num_train_epochs": float(int(made["num_train_epochs"]))}


@mutant("lora", "dpo", "full", caught_by="MPD712")
def rate_of_another_method() -> None:
    """Take the default learning rate, whatever was asked for."""
    change_arguments(learning_rate=2e-4)


@mutant("lora-accumulating", caught_by="MPD712")
def schedule_counts_batches() -> None:
    """Step the schedule with every batch and not with every optimizer step.

    The rate then falls as many times too fast.
    """

    @replaces(part("methods.sft:MixedPrecisionSFTTrainer"), "training_step")
    def step(original: Any, self: Any, *words: Any, **named: Any) -> Any:
        loss = original(self, *words, **named)
        if not self.accelerator.sync_gradients:
            self.lr_scheduler.step()
        return loss


@mutant("lora", caught_by="MPD753")
def data_in_file_order() -> None:
    """Show the samples in the order of the file, epoch after epoch."""
    change_arguments(train_sampling_strategy="sequential")
