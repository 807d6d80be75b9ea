"""Bugs to plant in the engine, in a cell's own process, to see whether the matrix catches them.

    mudpuppy-pressure run scenarios/seed.yaml --plant eos-masked

Each is one that an engine really had; the source is named. A matrix that stays green under any of
them is worthless.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from mudpuppy.errors import ConfigError, near_names


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One bug that can be planted."""

    name: str
    """What is broken, with dashes."""
    cells: tuple[str, ...]
    """Cells of `seed.yaml` that must catch it."""
    caught_by: tuple[str, ...]
    """Codes of the probes meant for it; empty where the outcome itself is wrong."""
    plant: Callable[[], None]
    """Patches the modules of this process."""


def _remove_streaming_rejection() -> None:
    """Let LoRA and streaming through, as an engine without the check did (seed 000)."""
    rules: Any = importlib.import_module("mudpuppy.rules")
    rules.RULES = tuple(rule for rule in rules.RULES if "streaming" not in rule.features)


def _attach_stub_adapter() -> None:
    """Set a flag instead of converting layers, and train everything (seed 004, the MLX backend)."""
    engine: Any = importlib.import_module("mudpuppy.engine")

    def attach(model: Any, *_: Any) -> Any:
        model.requires_grad_(True)
        model._has_adapter = True
        return model

    engine.attach_adapter = attach
    engine.verify_adapter = lambda model: None
    engine.adapter_settings = lambda model: {}
    engine.save_adapter = lambda model, tokenizer, folder, base: model.save_pretrained(folder)


def _merge_nothing() -> None:
    """Write the base without the adapter's change (engines.md, section 5, number 1)."""
    shard_merge: Any = importlib.import_module("mudpuppy.adapters.shard_merge")
    original = shard_merge.plan_merge

    def plan(*words: Any, **named: Any) -> Any:
        whole = original(*words, **named)
        return replace(whole, outputs=tuple(replace(o, change=None) for o in whole.outputs))

    shard_merge.plan_merge = plan


def _mask_eos() -> None:
    """Mask the end of every answer on the way to the trainer (FM01).

    A collator that takes EOS for padding does it. The engine has counted the labels by then, and
    believes itself.
    """
    fitting: Any = importlib.import_module("mudpuppy.methods.fitting")
    original = fitting.as_dataset

    def mask(labels: list[int]) -> list[int]:
        ends = [after == -100 for after in [*labels[1:], -100]]
        return [-100 if ends[i] else label for i, label in enumerate(labels)]

    fitting.as_dataset = lambda samples: original(
        [replace(sample, labels=mask(sample.labels)) for sample in samples]
    )


def _leave_second_adapter() -> None:
    """Leave a second adapter active beside the first (seed 004, issues 1 and 2).

    It trains along, and the adapter that is saved is only half of what was trained.
    """
    engine: Any = importlib.import_module("mudpuppy.engine")
    peft: Any = importlib.import_module("peft")
    original = engine.attach_adapter

    def attach(*words: Any) -> Any:
        adapted = original(*words)
        again = peft.LoraConfig(r=1, target_modules=["q_proj"], task_type="CAUSAL_LM")
        adapted.add_adapter("leftover", again)
        adapted.base_model.set_adapter(["default", "leftover"])
        return adapted

    engine.attach_adapter = attach
    engine.adapter_settings = lambda model: {}


def _stream_nothing() -> None:
    """Accept `--stream` and keep every layer resident (seed 000, before the rewrite)."""
    engine: Any = importlib.import_module("mudpuppy.engine")
    contextlib: Any = importlib.import_module("contextlib")
    engine.stream_layers = lambda model, device: contextlib.nullcontext()


def _compute_in_fp32() -> None:
    """Accept fp16 and compute in fp32, as accelerate does on a CPU."""
    fitting: Any = importlib.import_module("mudpuppy.methods.fitting")
    del fitting.CpuHalfPrecision.create_accelerator_and_postprocess


def _ignore_scheduler() -> None:
    """Declare a schedule and never pass it on."""
    fitting: Any = importlib.import_module("mudpuppy.methods.fitting")
    original = fitting.shared_arguments

    def arguments(config: Any, runtime: Any) -> Any:
        return original(config.model_copy(update={"lr_scheduler": "linear"}), runtime)

    fitting.shared_arguments = arguments


def _train_on_held_out() -> None:
    """Hold samples out and train on them all the same."""
    fitting: Any = importlib.import_module("mudpuppy.methods.fitting")
    original = fitting.split_samples
    fitting.split_samples = lambda samples, config: (list(samples), original(samples, config)[1])


def _save_weights_alone() -> None:
    """Save the weights without tokenizer and template."""
    saving: Any = importlib.import_module("mudpuppy.saving")
    engine: Any = importlib.import_module("mudpuppy.engine")
    original = saving.save_model

    class Nothing:
        def save_pretrained(self, folder: Any) -> None:
            del folder

    engine.save_model = lambda model, tokenizer, folder, dtype: original(
        model, Nothing(), folder, dtype
    )


MUTANTS: dict[str, Mutant] = {
    mutant.name: mutant
    for mutant in (
        Mutant(
            name="streaming-rejection-removed",
            cells=("lora-streaming-rejected",),
            caught_by=(),
            plant=_remove_streaming_rejection,
        ),
        Mutant(
            name="stub-adapter",
            cells=("lora-bf16",),
            caught_by=("MPD703",),
            plant=_attach_stub_adapter,
        ),
        Mutant(
            name="merge-does-nothing",
            cells=("qlora-4bit",),
            caught_by=("MPD707",),
            plant=_merge_nothing,
        ),
        Mutant(
            name="eos-masked",
            cells=("lora-bf16",),
            caught_by=("MPD705",),
            plant=_mask_eos,
        ),
        Mutant(
            name="second-adapter-left",
            cells=("lora-bf16",),
            caught_by=("MPD707", "MPD711"),
            plant=_leave_second_adapter,
        ),
        *(
            Mutant(name=name, cells=(cell,), caught_by=(code,), plant=plant)
            for name, cell, code, plant in (
                ("streams-nothing", "full-streaming", "MPD712", _stream_nothing),
                ("computes-in-fp32", "full-fp16", "MPD712", _compute_in_fp32),
                ("scheduler-ignored", "lora-cosine", "MPD712", _ignore_scheduler),
                ("trains-on-held-out", "lora-early-stopping", "MPD712", _train_on_held_out),
                ("weights-alone-saved", "full-streaming", "MPD713", _save_weights_alone),
            )
        ),
    )
}
"""Every bug that can be planted, by name."""


def plant_mutant(name: str) -> None:
    """Plant one bug in this process.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in MUTANTS:
        raise ConfigError([f"no planted bug is called '{name}'{near_names(name, MUTANTS)}"])
    MUTANTS[name].plant()
