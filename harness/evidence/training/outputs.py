"""Evidence about the checkpoints of one run beside each other, and what a run goes on from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from harness.evidence.files.inventory import leaves_folder, list_files, list_folders
from harness.evidence.files.pickle_tree import Call, Named, UnreadablePickle, read_torch_tree
from harness.evidence.source import CheckpointEvidence, provides
from harness.facts.checkpoint import Adapter, Files, Tensor, Weights
from harness.facts.outputs import Growth, OptimizerState, ResumeSet
from harness.registry import Missing, NotApplicable

STEP = re.compile(r"checkpoint-(\d{1,12})")
PARTS = {
    "optimizer": re.compile(r"optimizer\.(pt|bin|safetensors)"),
    "scheduler": re.compile(r"scheduler\.(pt|bin)"),
    "random state": re.compile(r"(rng_state|random_states)(_\d+)?\.(pth|pkl)"),
    "trainer state": re.compile(r"trainer_state\.json"),
}
"""Files that transformers' trainer, or accelerate, goes on from."""
SHARDED = re.compile(r"global_step\d+|optimizer_\d+|pytorch_model_fsdp_\d+|latest|zero_to_fp32\.py")
"""What DeepSpeed and FSDP leave in a checkpoint."""
OPTIMIZER = "optimizer.pt"
TENSORS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")


@provides("growth")
def compare_headers(evidence: CheckpointEvidence) -> Growth:
    """Compare the tensors of a checkpoint with those of the one before it."""
    before = find_earlier(evidence.folder)
    old, new = _tensors(CheckpointEvidence(before)), _tensors(evidence)
    if not old or not new:
        raise Missing(f"the weights of {evidence.folder.name} or {before.name} cannot be read")
    return Growth(
        earlier=before.name,
        name=evidence.folder.name,
        added=tuple(sorted(new.keys() - old.keys())),
        larger=tuple(n for n, t in new.items() if n in old and t.elements > old[n].elements),
        folders=tuple(sorted(_adapters_in(evidence.folder) - _adapters_in(before))),
        bytes_before=_bytes(old),
        bytes_now=_bytes(new),
        tensors=len(new),
    )


def find_earlier(folder: Path) -> Path:
    """Return the checkpoint before one in the same output.

    Raises:
        NotApplicable: it is no checkpoint of a run, or the first one.
    """
    mine = STEP.fullmatch(folder.name)
    if mine is None:
        raise NotApplicable("the folder is no checkpoint-N of a run")
    steps = [match for name in list_folders(folder.parent) if (match := STEP.fullmatch(name))]
    earlier = [match for match in steps if int(match[1]) < int(mine[1])]
    if not earlier:
        raise NotApplicable("there is no earlier checkpoint beside it")
    return folder.parent / max(earlier, key=lambda match: int(match[1]))[0]


def _tensors(evidence: CheckpointEvidence) -> dict[str, Tensor]:
    files: Files | None = evidence.find("files")
    if files is None or not files.readable:
        return {}
    readable = files.adapter if any(not f.problem for f in files.adapter) else files.weights
    if any(file.problem for file in readable):
        return {}
    return {tensor.name: tensor for file in readable for tensor in file.tensors}


def _bytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.end - tensor.start for tensor in tensors.values())


def _adapters_in(folder: Path) -> set[str]:
    """Return the names of the folders inside that hold an adapter."""
    found = set()
    for name in list_folders(folder):
        try:
            names = list_files(folder / name)
        except Missing:
            continue
        if "adapter_config.json" in names:
            found.add(name)
    return found


@provides("resume_set")
def list_resume_set(evidence: CheckpointEvidence) -> ResumeSet:
    """Return which files that a trainer goes on from are there."""
    if STEP.fullmatch(evidence.folder.name) is None:
        raise NotApplicable("the folder is no checkpoint-N of a run")
    files: Files = evidence.get("files")
    held = {
        part: [name for name in files.names if pattern.fullmatch(name)]
        for part, pattern in PARTS.items()
    }
    if not any(held.values()):
        raise NotApplicable("no trainer of transformers wrote into it")
    inside = [*files.names, *list_folders(evidence.folder)]
    return ResumeSet(
        present=tuple(part for part, names in held.items() if names),
        absent=tuple(part for part, names in held.items() if not names),
        empty=tuple(
            name for names in held.values() for name in names if _is_empty(evidence.folder / name)
        ),
        sharded=any(SHARDED.fullmatch(name) for name in inside),
    )


def _is_empty(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except OSError:
        return False


@provides("optimizer_state")
def list_optimizer(evidence: CheckpointEvidence) -> OptimizerState:
    """Return the parameters of optimizer.pt, listed and never loaded."""
    files: Files = evidence.get("files")
    if OPTIMIZER not in files.names or leaves_folder(evidence.folder, OPTIMIZER):
        raise NotApplicable(f"there is no {OPTIMIZER}")
    try:
        tree = read_torch_tree(evidence.folder / OPTIMIZER)
    except UnreadablePickle as problem:
        raise Missing(f"{OPTIMIZER} cannot be listed: {problem}") from problem
    groups = tree.get("param_groups") if isinstance(tree, dict) else None
    states = tree.get("state") if isinstance(tree, dict) else None
    if not isinstance(groups, list) or not isinstance(states, dict):
        raise Missing(f"{OPTIMIZER} does not have the form that torch gives it")
    held = [group.get("params") for group in groups if isinstance(group, dict)]
    numbers = [one for params in held if isinstance(params, list) for one in params]
    if not all(type(one) is int for one in numbers):
        raise Missing(f"{OPTIMIZER} names its parameters in another way than torch does")
    return OptimizerState(
        file=OPTIMIZER,
        parameters=len(numbers),
        shapes=tuple(shape for one in states.values() if (shape := _shape_of(one)) is not None),
    )


def _shape_of(state: Any) -> tuple[int, ...] | None:
    """Return the shape of the first moment of one parameter; None where it is kept otherwise."""
    if not isinstance(state, dict):
        return None
    moment = next((state[key] for key in ("exp_avg", "momentum_buffer") if key in state), None)
    if not isinstance(moment, Call) or not isinstance(moment.target, Named):
        return None
    known = moment.target.name in TENSORS and isinstance(moment.arguments, tuple)
    if not known or len(moment.arguments) < 3 or not isinstance(moment.arguments[2], tuple):
        return None
    sizes = moment.arguments[2]
    return tuple(sizes) if all(type(size) is int for size in sizes) else None


@provides("any_adapter")
def give_adapter(evidence: CheckpointEvidence) -> Adapter | None:
    """Return the adapter of the folder, or None when there is none."""
    found: Adapter | None = evidence.find("adapter")
    return found


@provides("any_weights")
def give_weights(evidence: CheckpointEvidence) -> Weights | None:
    """Return the model's tensors by header, or None when there are none."""
    found: Weights | None = evidence.find("weights")
    return found
