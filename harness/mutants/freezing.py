"""Bugs in what learns and what stands still."""

from __future__ import annotations

import importlib
from typing import Any

from harness.mutants.form import mutant, part, replaces


@mutant("lora", caught_by="MPD703")
def stub_adapter() -> None:
    """Set a flag instead of converting layers, and train everything (seed 004, the MLX backend)."""
    engine = part("engine")

    @replaces(engine, "attach_adapter")
    def attach(_: Any, model: Any, *__: Any) -> Any:
        model.requires_grad_(True)
        model._has_adapter = True
        return model

    @replaces(engine, "adapter_settings")
    def settings(*_: Any) -> Any:
        return {}

    @replaces(engine, "save_adapter")
    def save(_: Any, model: Any, tokenizer: Any, folder: Any, base: Any) -> None:
        model.save_pretrained(folder)


@mutant("lora", "dpo", caught_by="MPD703")
def base_tensor_trains() -> None:
    """Leave one tensor of the base trainable beside the adapter, where freezing goes by name.

    Source: FM52, unsloth-zoo PR#939.
    """

    @replaces(part("engine"), "attach_adapter")
    def attach(original: Any, *words: Any) -> Any:
        adapted = original(*words)
        name = next(n for n, _ in adapted.named_parameters() if n.endswith("norm.weight"))
        adapted.get_parameter(name).requires_grad_(True)
        return adapted


@mutant("lora", "qlora", caught_by="MPD203 MPD703")
def adapter_partly_frozen() -> None:
    """Freeze the adapter of the last block along with the base.

    A run that starts from `requires_grad_(False)` and switches on too little (FM08).
    """

    @replaces(part("engine"), "attach_adapter")
    def attach(original: Any, *words: Any) -> Any:
        adapted = original(*words)
        for name, parameter in adapted.named_parameters():
            if ".layers.1." in name and "lora_" in name:
                parameter.requires_grad_(False)
        return adapted


@mutant("full", "full-streaming", caught_by="MPD726")
def full_partly_frozen() -> None:
    """Train all weights but the embeddings and the norms, and say nothing of it."""

    @replaces(part("engine"), "load")
    def load(original: Any, *words: Any) -> Any:
        loaded = original(*words)
        for name, parameter in loaded.model.named_parameters():
            parameter.requires_grad_("embed" not in name and "norm" not in name)
        return loaded


@mutant("lora", "qlora", caught_by="MPD701")
def embeddings_drift() -> None:
    """Scale the frozen embeddings a little with every run.

    A decay that forgets what is frozen (peft#353).
    """

    @replaces(part("engine"), "fit")
    def fit(original: Any, model: Any, *words: Any, **named: Any) -> Any:
        result = original(model, *words, **named)
        model.get_input_embeddings().weight.data.mul_(0.999)
        return result


@mutant("lora", caught_by="MPD707 MPD711")
def second_adapter_left() -> None:
    """Leave a second adapter active beside the first (seed 004, issues 1 and 2).

    It trains along, and the adapter that is saved is only half of what was trained.
    """
    peft: Any = importlib.import_module("peft")

    @replaces(part("engine"), "attach_adapter")
    def attach(original: Any, *words: Any) -> Any:
        adapted = original(*words)
        again = peft.LoraConfig(r=1, target_modules=["q_proj"], task_type="CAUSAL_LM")
        adapted.add_adapter("leftover", again)
        adapted.base_model.set_adapter(["default", "leftover"])
        return adapted

    @replaces(part("engine"), "adapter_settings")
    def settings(*_: Any) -> Any:
        return {}


@mutant("lora", "lora-targets", caught_by="MPD712")
def targets_discarded() -> None:
    """Adapt the query and value projections whatever targets were asked for.

    Upstream does (engines.md, section 5, number 8).
    """
    attach = part("adapters.attach")

    @replaces(attach, "_resolve_targets")
    def resolve(*_: Any) -> Any:
        return ["q_proj", "v_proj"]


@mutant("lora-continued", caught_by="MPD712")
def adapter_started_anew() -> None:
    """Attach a fresh adapter where one was to be trained on (FM08, `get_peft_model` to load)."""

    @replaces(part("engine"), "continue_adapter")
    def continue_adapter(_: Any, model: Any, folder: Any, config: Any) -> Any:
        return part("adapters.attach").attach_adapter(model, config)


@mutant("rm", caught_by="MPD726")
def reward_head_frozen() -> None:
    """Freeze the score head along with the base, so that scores stay random (FM63)."""

    @replaces(part("engine"), "attach_adapter")
    def attach(original: Any, *words: Any) -> Any:
        adapted = original(*words)
        for name, parameter in adapted.named_parameters():
            if "lora_" not in name:
                parameter.requires_grad_(False)
        return adapted
