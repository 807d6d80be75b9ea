"""Weights where nobody trains them: before the first step, between steps, and in what was kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from harness.observations_twin import Deviation
from harness.twin.asked import Asked
from harness.twin.folding import find_name

RANGES = ".ranges."
"""Part of the names of int8 ranges that are learnt."""
HEADS = ("score", "classifier")
"""Names of heads that start at random."""


def compare_tensors(
    asked: Asked, run: Mapping[str, Any], twin: Mapping[str, Tensor], base: str, artefact: Path
) -> list[Deviation]:
    """Return where weights are not what they must be, but for the steps themselves.

    Args:
        asked: the settings.
        run: the recording.
        twin: what trains in the twin, by name, as it was opened.
        base: folder of the base.
        artefact: folder of the result.
    """
    found = list(_compare_names(run["initial"], twin))
    if not found:
        found += _compare_initial(asked, run["initial"], twin)
    for number, step in enumerate(run["steps"], start=1):
        for name in step.get("meddled", ())[:1]:
            what = "weights changed between two steps"
            found.append(Deviation(what=what, step=number, tensor=name))
        for name in step.get("without_update", ())[:1]:
            what = "a trainable tensor that the optimizer does not have"
            found.append(Deviation(what=what, step=number, tensor=name))
        if found:
            break
    found += _compare_file(asked, run["final"], artefact)
    return found


def _compare_names(
    initial: Mapping[str, Tensor], twin: Mapping[str, Tensor]
) -> Iterator[Deviation]:
    different = sorted(set(initial) ^ set(twin))
    if different:
        yield Deviation(
            what="trainable tensors",
            expected=len(twin),
            found=len(initial),
            tensor=different[0],
        )


def _compare_initial(
    asked: Asked, initial: Mapping[str, Tensor], twin: Mapping[str, Tensor]
) -> Iterator[Deviation]:
    """Yield the first tensor that does not start where it must: the base, or an adapter's file."""
    is_fresh = asked.adapter_trains and asked.settings["adapter"] is None
    for name, tensor in initial.items():
        if any(f".{head}." in f".{name}" for head in HEADS):
            continue
        if is_fresh and ".lora_B." in name:
            if bool(tensor.count_nonzero()):
                yield Deviation(what="B of a fresh adapter is not zero", tensor=name)
                return
        elif is_fresh and ".lora_A." in name:
            if not bool(tensor.count_nonzero()):
                yield Deviation(what="A of a fresh adapter is zero", tensor=name)
                return
        elif not torch.allclose(tensor.float(), twin[name].detach().float(), rtol=1e-5, atol=1e-7):
            off = float((tensor.float() - twin[name].detach().float()).abs().max())
            what = "largest difference to where it must start from"
            yield Deviation(what=what, tensor=name, expected=0.0, found=off)
            return


def _compare_file(asked: Asked, final: Mapping[str, Tensor], artefact: Path) -> Iterator[Deviation]:
    """Yield the first saved tensor that is not the one that was trained."""
    if not final:
        return
    path = artefact / "adapter_model.safetensors"
    paths = [path] if asked.adapter_trains else sorted(artefact.glob("*.safetensors"))
    saved = {n: t for one in paths if one.is_file() for n, t in load_file(one).items()}
    for name, tensor in final.items():
        if RANGES in name:  # of the training, not of the model
            continue
        held = saved.get(find_name(saved_name(name), saved) or "")
        if held is None:
            if not _is_tied(tensor, final, saved):
                yield Deviation(what="a trained tensor that the files do not hold", tensor=name)
                return
        elif not torch.equal(held, tensor.to(held.dtype)):
            what = "a saved tensor is not the trained one, largest difference"
            off = float((held.float() - tensor.float()).abs().max())
            yield Deviation(what=what, tensor=name, expected=0.0, found=off)
            return


def saved_name(name: str) -> str:
    """Return the name under which PEFT saves a parameter; that of a whole model is its own."""
    plain = name.replace(".modules_to_save.default", "").replace(".default", "")
    return plain.replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")


def _is_tied(tensor: Tensor, final: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> bool:
    """Whether a trained tensor that was saved is the same: of tied weights the files hold one."""
    return any(
        other.shape == tensor.shape and torch.equal(other, tensor)
        for one, other in final.items()
        if saved_name(one) in saved
    )


def compare_best(
    asked: Asked,
    run: Mapping[str, Any],
    states: Sequence[Mapping[str, Tensor]],
    evaluated: Sequence[tuple[int, float, float]],
) -> Iterator[Deviation]:
    """Yield where the weights at the end are not those that they must be.

    With early stopping they are those of the evaluation with the lowest loss, else the last ones.
    """
    if not run["final"] or len(states) <= len(run["steps"]):
        return
    number = len(run["steps"])
    if asked.early_stopping is not None and evaluated:
        number = min(evaluated, key=lambda one: one[1])[0]
    for name, tensor in run["final"].items():
        if not torch.equal(tensor, states[number][name]):
            yield Deviation(
                what="weights at the end that are not those after this step",
                step=number,
                tensor=name,
                expected=0.0,
                found=float((tensor.double() - states[number][name].double()).abs().max()),
            )
            return
