"""Bugs in how strongly an adapter acts."""

from __future__ import annotations

from typing import Any

from harness.mutants.form import change_saved_adapter, mutant, part, replaces


def _change_form(**values: Any) -> None:
    """Make the adapter with other settings than those asked for."""

    @replaces(part("adapters.attach"), "LoraConfig")
    def make(original: Any, **named: Any) -> Any:
        return original(**{**named, **values})


@mutant("lora", caught_by="MPD707")
def alpha_ignored() -> None:
    """Train with BA alone, and write alpha into the settings all the same (FM26, sglang#40835)."""

    @replaces(part("engine"), "attach_adapter")
    def attach(original: Any, *words: Any) -> Any:
        adapted = original(*words)
        for layer in adapted.modules():
            if "default" in (getattr(layer, "lora_A", None) or {}):
                layer.scaling["default"] = 1.0
        return adapted


@mutant("lora", "dpo", caught_by="MPD712")
def alpha_is_rank() -> None:
    """Set alpha to the rank, whatever was asked for: half the update of the default."""

    @replaces(part("adapters.attach"), "LoraConfig")
    def make(original: Any, **named: Any) -> Any:
        return original(**{**named, "lora_alpha": named["r"]})


@mutant("lora-rslora", caught_by="MPD712")
def rslora_ignored() -> None:
    """Accept rsLoRA and scale by alpha / r (FM26)."""
    _change_form(use_rslora=False)


@mutant("lora-dora-merge", caught_by="MPD712")
def dora_ignored() -> None:
    """Accept DoRA and train plain LoRA (unsloth refuses it on experts; others say nothing)."""
    _change_form(use_dora=False)


@mutant("lora-dora-merge", caught_by="MPD726")
def dora_magnitude_frozen() -> None:
    """Freeze the magnitude of DoRA, so that only the direction learns."""

    @replaces(part("engine"), "attach_adapter")
    def attach(original: Any, *words: Any) -> Any:
        adapted = original(*words)
        for name, parameter in adapted.named_parameters():
            if "magnitude" in name:
                parameter.requires_grad_(False)
        return adapted


@mutant("lora-dora", caught_by="MPD707")
def dora_magnitude_not_saved() -> None:
    """Save a DoRA adapter without its magnitudes."""
    change_saved_adapter(lambda name, x: None if "magnitude" in name else (name, x))


@mutant("lora-dropout", "dpo-dropout", caught_by="MPD712")
def dropout_switched_off() -> None:
    """Set the adapter's dropout to 0 and leave the setting as it was.

    As TRL does for preferences (`disable_dropout`).
    """

    @replaces(part("engine"), "attach_adapter")
    def attach(original: Any, *words: Any) -> Any:
        adapted = original(*words)
        for layer in adapted.modules():
            if type(layer).__name__ == "Dropout":
                layer.p = 0.0
        return adapted
