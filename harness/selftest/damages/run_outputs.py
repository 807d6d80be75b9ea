"""Damages of what trainers leave: checkpoints that grow, stand still, explode, end in part."""

from __future__ import annotations

import shutil
from pathlib import Path

from harness.selftest.edit import Tensors, edit_json, edit_tensors
from harness.selftest.registry import Patient, damage

LAST, BEFORE = "checkpoint-3", "checkpoint-2"
LORA, FULL = "trl-sft-lora", "trl-sft-full"


def _last(patient: Patient) -> Path:
    return patient.path / LAST


@damage("run-grows-by-modules", patient=LORA, mode="FM18", probe="checkpoints-grow")
def grow_by_modules(patient: Patient) -> None:
    """Resume with another set of targets on top of the first."""

    def add(tensors: Tensors) -> Tensors:
        more = {k.replace("q_proj", "o_proj"): v * 0.9 for k, v in tensors.items()}
        return {**tensors, **more}

    edit_tensors(_last(patient), add)
    edit_json(_last(patient) / "adapter_config.json", target_modules=["q_proj", "o_proj"])


@damage("run-grows-by-rank", patient=LORA, mode="FM18", probe="checkpoints-grow")
def grow_by_rank(patient: Patient) -> None:
    """Resume with the factors of two adapters side by side."""
    import torch

    edit_tensors(
        _last(patient),
        lambda t: {k: torch.cat([v, v * 0.5], dim=int("lora_B" in k)) for k, v in t.items()},
    )
    edit_json(_last(patient) / "adapter_config.json", r=8, lora_alpha=16)
    _drop_optimizer(patient)


@damage("run-grows-by-folder", patient=LORA, mode="FM18", probe="checkpoints-grow")
def grow_by_folder(patient: Patient) -> None:
    """Save a second adapter beside the first."""
    inner = _last(patient) / "default_0"
    inner.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(_last(patient) / name, inner / name)


def _drop_optimizer(patient: Patient) -> None:
    """Leave the weights alone in every checkpoint, so that only they can say something."""
    for folder in patient.path.glob("checkpoint-*"):
        for pattern in ("optimizer.pt", "scheduler.pt", "rng_state*"):
            for path in folder.glob(pattern):
                path.unlink()


@damage("run-stands-still", patient=LORA, mode="FM08", probe="checkpoint-unchanged")
def stand_still(patient: Patient) -> None:
    """Save the adapter of the step before once more."""
    name = "adapter_model.safetensors"
    shutil.copy(patient.path / BEFORE / name, _last(patient) / name)


@damage("run-of-all-weights-stands-still", patient=FULL, mode="FM09", probe="checkpoint-unchanged")
def stand_still_whole(patient: Patient) -> None:
    """Save the model of the step before once more."""
    shutil.copy(patient.path / BEFORE / "model.safetensors", _last(patient) / "model.safetensors")


@damage("run-stands-still-in-part", patient=LORA, mode="FM08", probe="checkpoint-unchanged")
def stand_still_in_part(patient: Patient) -> None:
    """Keep one module as it was."""
    from safetensors.torch import load_file

    old = load_file(patient.path / BEFORE / "adapter_model.safetensors")
    edit_tensors(
        _last(patient), lambda t: {k: old[k] if ".layers.0." in k else v for k, v in t.items()}
    )


@damage("run-explodes", patient=LORA, mode="FM61", probe="adapter-exploded")
def explode(patient: Patient) -> None:
    """Let lora_B grow out of all bounds."""
    edit_tensors(
        _last(patient), lambda t: {k: v * (3e4 if "lora_B" in k else 1) for k, v in t.items()}
    )


@damage("run-without-optimizer", patient=LORA, mode="FM14", probe="checkpoint-not-resumable")
def lose_optimizer(patient: Patient) -> None:
    """Write everything but the optimizer."""
    (_last(patient) / "optimizer.pt").unlink()


@damage("run-without-state", patient=FULL, mode="FM14", probe="checkpoint-not-resumable")
def lose_state(patient: Patient) -> None:
    """Write everything but the trainer's state."""
    (_last(patient) / "trainer_state.json").unlink()


@damage("run-with-other-optimizer", patient=LORA, mode="FM14", probe="optimizer-disagrees")
def exchange_optimizer(patient: Patient) -> None:
    """Put the optimizer of a run that trained the head along into it."""
    import torch

    path = _last(patient) / "optimizer.pt"
    value = torch.load(path, weights_only=True)
    number = len(value["state"])
    value["param_groups"][0]["params"].append(number)
    value["state"][number] = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(50, 60)}
    torch.save(value, path)


@damage("run-with-smaller-optimizer", patient=LORA, mode="FM14", probe="optimizer-disagrees")
def shrink_optimizer(patient: Patient) -> None:
    """Put the optimizer of a run with fewer targets into it."""
    import torch

    path = _last(patient) / "optimizer.pt"
    value = torch.load(path, weights_only=True)
    lost = value["param_groups"][0]["params"].pop()
    value["state"].pop(lost, None)
    torch.save(value, path)


@damage("run-with-wider-optimizer", patient=FULL, mode="FM14", probe="optimizer-disagrees")
def reshape_optimizer(patient: Patient) -> None:
    """Put the optimizer of a wider model into it."""
    import torch

    path = _last(patient) / "optimizer.pt"
    value = torch.load(path, weights_only=True)
    for state in value["state"].values():
        if state["exp_avg"].dim() == 2:
            state["exp_avg"] = torch.zeros(state["exp_avg"].shape[0], 200)
    torch.save(value, path)
