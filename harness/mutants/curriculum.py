"""Root causes of a dead curriculum, planted into one that runs: a stack, a stub, a bad merge.

Each takes the engine's own guard away together with what it guards, as in a trainer that has none:
what is left to notice it is the stage gate.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.mutants.form import part, replaces
from mudpuppy.pipelines.curriculum.gates import MERGE, STACKED, STUB

TARGETS = ["q_proj", "v_proj"]
RANK = 1
"""Rank of the adapter that is put on top."""


def stack_adapters() -> None:
    """Put a new adapter on the one of SFT where DPO begins, and train both as one model."""

    @replaces(part("engine"), "continue_adapter")
    def continue_adapter(original: Any, model: Any, folder: Path, config: Any) -> Any:
        if config.method != "dpo":
            return original(model, folder, config)
        peft: Any = importlib.import_module("peft")
        # TRL looks for the reference of every factor that is called by the usual name.
        adapted = peft.PeftModel.from_pretrained(
            model, str(folder), adapter_name="sft", is_trainable=True
        )
        settings = peft.LoraConfig(
            r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS, task_type="CAUSAL_LM"
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT warns of the very damage that is wanted here
            stacked = peft.get_peft_model(adapted, settings)
        stacked.get_base_model = adapted.get_base_model  # TRL computes the loss in there
        return stacked

    @replaces(part("engine"), "adapter_settings")
    def adapter_settings(original: Any, model: Any) -> Any:
        del original  # it knows one adapter alone
        return {"names": sorted(model.peft_config)}


def stub_adapter() -> None:
    """Attach an adapter in name alone: its factors are frozen, and the base trains."""

    @replaces(part("engine"), "attach_adapter")
    def attach(original: Any, *words: Any) -> Any:
        adapted = original(*words)
        for name, parameter in adapted.named_parameters():
            parameter.requires_grad_(".lora_" not in name)
        return adapted


def corrupt_merge() -> None:
    """Save merged matrices as a kernel leaves them that forgets their strides: column by column."""

    @replaces(part("pipelines.curriculum.stages"), "merge_stage")
    def merge(original: Any, point: Any, folder: Path) -> Any:
        report = original(point, folder)
        files: Any = importlib.import_module("safetensors.torch")
        path = folder / "model" / "model.safetensors"
        tensors = files.load_file(path)
        for name, tensor in tensors.items():
            if "_proj" in name:
                tensors[name] = tensor.t().contiguous().view(tensor.shape)
        files.save_file(tensors, path, {"format": "pt"})
        return report


PLANTS: Mapping[str, Callable[[], None]] = {
    STACKED: stack_adapters,
    STUB: stub_adapter,
    MERGE: corrupt_merge,
}
"""What can be planted, by the root cause that the gate must name."""
