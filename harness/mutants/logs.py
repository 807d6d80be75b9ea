"""Bugs in what a run says of itself while it goes on."""

from __future__ import annotations

from typing import Any

from harness.mutants.form import mutant, part, replaces


def _change_log(change: Any) -> None:
    @replaces(part("methods.steplog:StepWriter"), "on_log")
    def on_log(
        original: Any,
        self: Any,
        args: Any,
        state: Any,
        control: Any,
        logs: Any = None,
        **named: Any,
    ) -> Any:
        return original(self, args, state, control, logs=change(dict(logs or {})), **named)


@mutant("lora", "dpo", caught_by="MPD722")
def wrong_losses_logged() -> None:
    """Log losses that fall by themselves: each is divided by the number of the step."""
    seen: list[float] = []

    def sink(logs: dict[str, Any]) -> dict[str, Any]:
        if "loss" in logs:
            seen.append(logs["loss"])
            logs["loss"] = logs["loss"] / len(seen)
        return logs

    _change_log(sink)


@mutant("lora", caught_by="MPD722")
def first_loss_logged_again() -> None:
    """Log every loss one step late."""
    seen: list[float] = []

    def late(logs: dict[str, Any]) -> dict[str, Any]:
        if "loss" in logs:
            seen.append(logs["loss"])
            logs["loss"] = seen[max(0, len(seen) - 2)]
        return logs

    _change_log(late)


@mutant("lora-clipped", caught_by="MPD723")
def clipped_norm_logged() -> None:
    """Log the gradient's norm after clipping: it looks calm for ever."""

    def clip(logs: dict[str, Any]) -> dict[str, Any]:
        if "grad_norm" in logs:
            logs["grad_norm"] = min(float(logs["grad_norm"]), 0.1)
        return logs

    _change_log(clip)


@mutant("lora-tensorboard", caught_by="MPD719")
def tensorboard_left_out() -> None:
    """Accept `--report-to` and write for nobody."""
    from harness.mutants.form import change_arguments

    change_arguments(report_to=[])


@mutant("lora-tensorboard", caught_by="MPD719")
def tensorboard_wrong() -> None:
    """Write other losses for TensorBoard than into the step log."""
    transformers: Any = __import__("transformers.integrations", fromlist=["TensorBoardCallback"])

    @replaces(transformers.TensorBoardCallback, "on_log")
    def on_log(
        original: Any,
        self: Any,
        args: Any,
        state: Any,
        control: Any,
        logs: Any = None,
        **named: Any,
    ) -> Any:
        other = {name: x * 0.5 if name == "loss" else x for name, x in (logs or {}).items()}
        return original(self, args, state, control, logs=other, **named)
