"""Bugs in the types that are computed and held in."""

from __future__ import annotations

from typing import Any

from harness.mutants.form import change_arguments, mutant, part, replaces


@mutant("full-fp16", caught_by="MPD712")
def computes_in_fp32() -> None:
    """Accept fp16 and compute in fp32, as accelerate does on a CPU."""
    trainer = part("methods.keeping:EngineTrainer")

    @replaces(trainer, "create_accelerator_and_postprocess")
    def create(_: Any, self: Any) -> None:
        super(trainer, self).create_accelerator_and_postprocess()


@mutant("full-bf16", caught_by="MPD712")
def autocast_off() -> None:
    """Accept bf16 and train the fp32 master weights in fp32."""
    change_arguments(bf16=False)


@mutant("full-bf16", caught_by="MPD750")
def master_weights_in_bf16() -> None:
    """Hold the weights themselves in bf16, where small steps are rounded away."""

    @replaces(part("loading"), "_load_model")
    def load(original: Any, path: Any, dtype: Any, *more: Any) -> Any:
        import torch

        return original(path, torch.bfloat16, *more)


@mutant("lora-bf16", caught_by="MPD750")
def adapter_in_bf16() -> None:
    """Hold the adapter in the type of its base."""

    @replaces(part("engine"), "attach_adapter")
    def attach(original: Any, *words: Any) -> Any:
        import torch

        adapted = original(*words)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
        return adapted


@mutant("lora-bf16", caught_by="MPD712")
def base_in_fp32() -> None:
    """Load the frozen base in fp32 where it was to be held in bf16: twice the memory."""

    @replaces(part("loading"), "_load_model")
    def load(original: Any, path: Any, dtype: Any, *more: Any) -> Any:
        import torch

        return original(path, torch.float32, *more)

    change_arguments(bf16=False)


@mutant("full-fp16", caught_by="MPD722 MPD723 MPD726")
def gradients_never_unscaled() -> None:
    """Step with gradients that are still multiplied by the loss scale (FM42)."""
    import torch

    @replaces(torch.amp.GradScaler, "unscale_")
    def unscale(_: Any, self: Any, optimizer: Any) -> None:
        state = self._per_optimizer_states[id(optimizer)]
        state["found_inf_per_device"] = {torch.device("cpu"): torch.zeros(())}
        state["stage"] = type(state["stage"]).UNSCALED
