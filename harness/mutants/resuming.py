"""Bugs in going on from a checkpoint."""

from __future__ import annotations

from typing import Any

from harness.mutants.form import mutant, part, replaces


def _trainer() -> Any:
    return part("methods.keeping:EngineTrainer")


@mutant("lora-resumed", "full-resumed", caught_by="MPD727")
def optimizer_state_lost() -> None:
    """Go on with a fresh optimizer (FM14)."""

    @replaces(_trainer(), "_load_optimizer_and_scheduler")
    def load(original: Any, self: Any, checkpoint: Any) -> None:
        keep, self.optimizer = self.optimizer, _Deaf(self.optimizer)
        original(self, checkpoint)
        self.optimizer = keep


class _Deaf:
    """An optimizer that takes no state."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def load_state_dict(self, state: Any) -> None:
        del state

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@mutant("lora-resumed", "full-resumed", caught_by="MPD727")
def schedule_begins_anew() -> None:
    """Go on with the learning rate of the first step (FM58)."""

    @replaces(_trainer(), "_load_optimizer_and_scheduler")
    def load(original: Any, self: Any, checkpoint: Any) -> None:
        original(self, checkpoint)
        peak = self.args.learning_rate
        self.lr_scheduler.last_epoch = 0
        for group in self.optimizer.param_groups:
            group["lr"] = peak


@mutant("lora-resumed", "full-resumed", caught_by="MPD727")
def data_begins_anew() -> None:
    """Show the first samples of the epoch again (`ignore_data_skip`)."""

    @replaces(_trainer(), "_load_from_checkpoint")
    def load(original: Any, self: Any, *words: Any, **named: Any) -> None:
        self.args.ignore_data_skip = True
        original(self, *words, **named)


@mutant("ipo-fp16-resumed", caught_by="MPD727")
def scaler_lost() -> None:
    """Go on with the first loss scale."""

    @replaces(_trainer(), "_load_scaler")
    def load(*_: Any) -> None:
        return None


@mutant("lora-dropout-resumed", caught_by="MPD727")
def random_state_lost() -> None:
    """Go on with the random numbers of the beginning: dropout masks come again."""

    @replaces(_trainer(), "_load_rng_state")
    def load(*_: Any) -> None:
        return None


@mutant("lora-resumed", "full-resumed", caught_by="MPD727")
def weights_not_loaded() -> None:
    """Go on with the weights of the base, and the step count of the checkpoint."""

    @replaces(_trainer(), "_load_from_checkpoint")
    def load(*_: Any, **__: Any) -> None:
        return None


@mutant("lora-resumed", caught_by="MPD727")
def steps_taken_again() -> None:
    """Forget how many steps were taken, and take them all."""

    @replaces(part("engine"), "fit")
    def fit(original: Any, *words: Any, resumed: Any, **named: Any) -> Any:
        return original(*words, resumed=None, **named)
