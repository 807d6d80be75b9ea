"""Bugs in how the gradients of several batches become one step."""

from __future__ import annotations

from typing import Any

from harness.mutants.form import change_arguments, mutant, part, replaces


def _change_loss(change: Any) -> None:
    """Change the loss of each batch; `change` gets the trainer, the loss and its batch's number."""
    counts: dict[int, int] = {}

    @replaces(part("methods.sft:MixedPrecisionSFTTrainer"), "compute_loss")
    def compute_loss(original: Any, self: Any, *words: Any, **named: Any) -> Any:
        loss = original(self, *words, **named)
        if not self.model.training:
            return loss
        number = counts[id(self)] = counts.get(id(self), -1) + 1
        return change(self, loss, number)


@mutant("lora-accumulating", caught_by="MPD722 MPD723")
def loss_not_divided() -> None:
    """Add up the mean losses of the batches of a step.

    Its gradient is then as many times too large (FM39; transformers PR#34191).
    """

    @replaces(part("methods.batching:ChunkedLoss"), "compute_loss")
    def compute_loss(
        original: Any, self: Any, model: Any, inputs: Any, *more: Any, **named: Any
    ) -> Any:
        del more, named
        return original(self, model, inputs, False, None)


@mutant("lora-accumulating", caught_by="MPD722 MPD723")
def mean_of_means() -> None:
    """Give every batch of a step the same weight, however many tokens it trains (FM39)."""

    @replaces(part("methods.batching:ChunkedLoss"), "compute_loss")
    def compute_loss(
        original: Any, self: Any, model: Any, inputs: Any, *more: Any, **named: Any
    ) -> Any:
        del more, named
        mean = original(self, model, inputs, False, None)
        return mean / self.args.gradient_accumulation_steps


@mutant("lora-accumulating", caught_by="MPD722 MPD723")
def last_batch_dropped() -> None:
    """Lose the gradient of the last batch of every step."""

    def drop(trainer: Any, loss: Any, number: int) -> Any:
        steps = trainer.args.gradient_accumulation_steps
        return loss * 0.0 if number % steps == steps - 1 else loss

    _change_loss(drop)


@mutant("lora-accumulating", caught_by="MPD725 MPD722")
def accumulation_ignored() -> None:
    """Accept `--gradient-accumulation` and step after every batch."""
    change_arguments(gradient_accumulation_steps=1)


@mutant("prm-accumulating", caught_by="MPD722 MPD723")
def judged_steps_not_divided() -> None:
    """Take the mean of every batch where the trainer counts on a share of the step's items.

    The loss of transformers' own token classification does so (FM39).
    """

    @replaces(part("methods.process_reward:ProcessRewardTrainer"), "compute_loss")
    def compute_loss(original: Any, self: Any, *words: Any, **named: Any) -> Any:
        return original(self, *words, **{**named, "num_items_in_batch": None})


@mutant("lora-clipped", caught_by="MPD723")
def clipping_ignored() -> None:
    """Accept `--max-grad-norm` and clip nothing."""
    change_arguments(max_grad_norm=0.0)


@mutant("full-decay", caught_by="MPD726")
def decay_ignored() -> None:
    """Accept `--weight-decay` and decay nothing."""
    change_arguments(weight_decay=0.0)


@mutant("full-decay", caught_by="MPD726")
def decay_in_the_gradient() -> None:
    """Decay by way of the gradient, which Adam then divides away.

    Adam for AdamW (Loshchilov and Hutter 2019).
    """
    import importlib

    torch: Any = importlib.import_module("torch")

    @replaces(part("methods.keeping:EngineTrainer"), "create_optimizer")
    def create(original: Any, self: Any, model: Any = None) -> Any:
        made = original(self, model)
        groups = [{**group, "decoupled_weight_decay": False} for group in made.param_groups]
        self.optimizer = torch.optim.Adam(groups)
        return self.optimizer


@mutant("full", "lora", caught_by="MPD726")
def optimizer_exchanged() -> None:
    """Step with plain gradient descent where AdamW was promised."""
    import importlib

    torch: Any = importlib.import_module("torch")

    @replaces(part("methods.keeping:EngineTrainer"), "create_optimizer")
    def create(original: Any, self: Any, model: Any = None) -> Any:
        made = original(self, model)
        parameters = [p for group in made.param_groups for p in group["params"]]
        self.optimizer = torch.optim.SGD(parameters, lr=self.args.learning_rate)
        return self.optimizer
