"""Records a training run from outside the engine: batches, losses, gradients and weights.

transformers' own `Trainer` is wrapped in the process of the cell, and torch's optimizers are
listened to; the engine's code is not touched and not asked. The twin replays what is written here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.optim import optimizer as optimizers

from harness.twin.result import RECORDING_FILE

MAX_BYTES = 1 << 29
"""Weights and gradients of steps that are kept, of a larger run those of the first steps; also the
most that the weights at begin, now and at the end may take together, and the most for batches."""
COPIES = 3
"""Copies of what trains beside the steps: at the begin, after the step before, at the end."""


class Recorder:
    """What was seen of one run."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._step: dict[str, Any] = {"batches": []}
        self._is_closed = False
        self._evaluating: list[dict[str, Any]] | None = None
        self._bytes = self._batch_bytes = 0
        self._previous: dict[str, torch.Tensor] = {}
        self.too_large = ""
        self.trainer: Any = None
        self.steps: list[dict[str, Any]] = []
        self.evaluations: list[dict[str, Any]] = []
        self.initial: dict[str, torch.Tensor] = {}
        self.final: dict[str, torch.Tensor] = {}

    def begin(self, trainer: Any) -> None:
        """Look at a trainer before its first step: which tensors train, and what they hold."""
        if self.trainer is trainer:
            return
        self.trainer = trainer
        named = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
        size = COPIES * sum(_count_bytes(p) for p in named.values())
        if size > MAX_BYTES:
            self._give_up(f"{COPIES} copies of what trains take {size} bytes of {MAX_BYTES}")
            return
        self._names = {id(p): plain_name(n) for n, p in named.items()}
        self.initial = {plain_name(n): _copy(p) for n, p in named.items()}
        self._previous = self.initial

    def _give_up(self, why: str) -> None:
        """Let go of everything, and keep nothing from now on."""
        self.too_large = why
        self._names, self._previous, self.initial = {}, {}, {}
        self._step, self._is_closed = {"batches": []}, False
        self.steps.clear()
        self.evaluations.clear()

    def see_batch(self, inputs: Any) -> None:
        """Keep what a loss is computed from, before it is."""
        if self.too_large:
            return
        tensors = [value for value in inputs.values() if isinstance(value, torch.Tensor)]
        self._batch_bytes += sum(map(_count_bytes, tensors))
        if self._batch_bytes > MAX_BYTES:
            self._give_up(f"the batches take more than {MAX_BYTES} bytes")
            return
        batch = {name: _copied(value) for name, value in inputs.items() if _is_kept(value)}
        target = self._step["batches"] if self._evaluating is None else self._evaluating
        target.append({"inputs": batch})

    def see_loss(self, loss: Any, *, is_last: bool) -> None:
        """Keep what a micro-batch came to, as it enters the gradient."""
        if self.too_large:
            return
        self._step["batches"][-1]["loss"] = float(loss)
        self._is_closed = is_last

    def open_batch(self) -> None:
        """Close the step before, where its optimizer was never asked (an overflow in fp16)."""
        if self._is_closed:
            self._push(skipped=True)

    def before_update(self, optimizer: Any) -> None:
        """Keep the gradients and the settings that an optimizer is about to use."""
        owned = [p for g in optimizer.param_groups for p in g["params"] if id(p) in self._names]
        if not owned:
            return
        named = {self._names[id(p)]: p for p in owned}
        self._step["meddled"] = sorted(
            n for n, p in named.items() if not torch.equal(p.detach().cpu(), self._previous[n])
        )
        self._step["without_update"] = sorted(set(self._previous) - set(named))
        self._step["groups"] = [
            {
                **{key: float(group.get(key, 0.0)) for key in ("lr", "weight_decay", "eps")},
                "betas": [float(beta) for beta in group.get("betas", ())],
                "names": [self._names[id(p)] for p in group["params"] if id(p) in self._names],
            }
            for group in optimizer.param_groups
        ]
        self._step["gradients"] = {n: _copy(p.grad) for n, p in named.items() if p.grad is not None}

    def after_update(self, optimizer: Any) -> None:
        """Keep the weights that came out."""
        owned = [p for g in optimizer.param_groups for p in g["params"] if id(p) in self._names]
        if not owned or "gradients" not in self._step:
            return
        after = {self._names[id(p)]: _copy(p) for p in owned}
        self._previous = {**self._previous, **after}
        gradients = self._step["gradients"].values()
        skipped = not all(bool(torch.isfinite(g).all()) for g in gradients)
        self._bytes += sum(map(_count_bytes, [*gradients, *after.values()]))
        if self._bytes > MAX_BYTES:
            self._step.pop("gradients")
        else:
            self._step["weights"] = after
        self._push(skipped=skipped)

    def _push(self, *, skipped: bool) -> None:
        self.steps.append({**self._step, "skipped": skipped})
        self._step, self._is_closed = {"batches": []}, False

    def evaluate(self, run: Callable[[], Any]) -> Any:
        """Run an evaluation and keep its batches and its loss."""
        if self.too_large:
            return run()
        self._evaluating = []
        try:
            metrics = run()
            loss = (metrics or {}).get("eval_loss")
            seen = {"steps": len(self.steps), "batches": self._evaluating, "loss": loss}
            self.evaluations += [] if self.too_large else [seen]
        finally:
            self._evaluating = None
        return metrics

    def end(self) -> None:
        """Look at the model after the last step, or after the best one was brought back."""
        if self.trainer is None or self.too_large:
            return
        if self._is_closed:
            self._push(skipped=True)
        by_name = dict(self.trainer.model.named_parameters())
        self.final = {
            plain_name(n): _copy(p) for n, p in by_name.items() if plain_name(n) in self.initial
        }

    def write(self, folder: Path) -> None:
        """Write the recording into the folder of the cell."""
        kept = {
            "steps": self.steps,
            "evaluations": self.evaluations,
            "initial": self.initial,
            "final": self.final,
            "too_large": self.too_large,
        }
        torch.save(kept, folder / RECORDING_FILE)


@contextmanager
def recording(folder: Path) -> Iterator[Recorder]:
    """Record the run inside the block, and write the recording however it ends."""
    recorder = Recorder()
    kept = _wrap_trainer(recorder)
    hooks = [
        optimizers.register_optimizer_step_pre_hook(lambda o, *_: recorder.before_update(o)),
        optimizers.register_optimizer_step_post_hook(lambda o, *_: recorder.after_update(o)),
    ]
    try:
        yield recorder
    finally:
        for hook in hooks:
            hook.remove()
        for name, method in kept.items():
            setattr(transformers.Trainer, name, method)
        recorder.write(folder)


def _wrap_trainer(recorder: Recorder) -> dict[str, Any]:
    """Put a listener around three methods of transformers' trainer, and return the methods."""
    trainer_class: Any = transformers.Trainer
    kept = {name: getattr(trainer_class, name) for name in ("training_step", "evaluate", "train")}

    @wraps(kept["training_step"])
    def training_step(trainer: Any, *words: Any, **named: Any) -> Any:
        recorder.begin(trainer)
        recorder.open_batch()
        with _listening(trainer, recorder):
            loss = kept["training_step"](trainer, *words, **named)
        recorder.see_loss(loss, is_last=bool(trainer.accelerator.sync_gradients))
        return loss

    @wraps(kept["evaluate"])
    def evaluate(trainer: Any, *words: Any, **named: Any) -> Any:
        with _listening(trainer, recorder):
            return recorder.evaluate(lambda: kept["evaluate"](trainer, *words, **named))

    @wraps(kept["train"])
    def train(trainer: Any, *words: Any, **named: Any) -> Any:
        result = kept["train"](trainer, *words, **named)
        recorder.end()
        return result

    wrapped = {"training_step": training_step, "evaluate": evaluate, "train": train}
    for name, method in wrapped.items():
        setattr(trainer_class, name, method)
    return kept


@contextmanager
def _listening(trainer: Any, recorder: Recorder) -> Iterator[None]:
    """Keep the inputs of every loss that the trainer computes inside the block."""
    compute = trainer.compute_loss

    def compute_loss(model: Any, inputs: Any, *words: Any, **named: Any) -> Any:
        recorder.see_batch(inputs)
        return compute(model, inputs, *words, **named)

    trainer.compute_loss = compute_loss
    try:
        yield
    finally:
        del trainer.compute_loss


def plain_name(name: str) -> str:
    """Return a parameter's name without what a compiler puts in front of it."""
    return name.replace("_orig_mod.", "")


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)


def _count_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _is_kept(value: Any) -> bool:
    return isinstance(value, torch.Tensor | int | float | bool | list | tuple)


def _copied(value: Any) -> Any:
    return _copy(value) if isinstance(value, torch.Tensor) else value
