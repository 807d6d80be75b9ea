"""The optimizer's state is not that of the tensors that are trained.

What it does: lists optimizer.pt without loading it, counts its parameters and takes the shapes of
its moments, and compares them with the tensors of the adapter, or of the model, beside it.

Why it is bad: resuming stops with "loaded state dict contains a parameter group that doesn't match
the size of optimizer's group", or moments of one tensor are used for another (FM14): the trainable
set of the run was another one than what was saved, as when modules_to_save come back frozen.

Example: 130 parameters in optimizer.pt, 128 trained tensors in adapter_model.safetensors.

What to do: resume from a checkpoint in which both agree, with the PEFT version and the settings of
the run; or load the weights and start a new optimizer, knowingly.
"""

from __future__ import annotations

from harness.facts.checkpoint import Adapter, Weights
from harness.facts.outputs import OptimizerState
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, probe

MESSAGE = "loaded state dict contains a parameter group that doesn't match the size of optimizer's"


@probe("MPD115", modes=["FM14"], severity=Severity.HIGH)
def check(
    optimizer_state: OptimizerState, any_adapter: Adapter | None, any_weights: Weights | None
) -> Finding | str:
    """Compare the number of parameters, then the shapes of their moments."""
    state = optimizer_state
    if any_adapter is not None:
        if any_adapter.kind != "LORA":
            raise Missing("which tensors this kind of adapter trains is not known here")
        factors, whole = _trained(any_adapter)
        halves = sum(pair.b is not None for pair in any_adapter.pairs)
        fits = factors <= state.parameters <= factors + whole
        if not fits and not halves <= state.parameters <= halves + whole:
            return _finding(
                state, f"{state.parameters} parameters", f"{factors + whole} trained tensors"
            )
        tensors = [tensor.shape for tensor in any_adapter.tensors.values()]
    elif any_weights is not None and any_weights.complete:
        if any("expert" in name for name in any_weights.tensors):
            raise Missing("experts are saved in another form than they are trained")
        tensors = [tensor.shape for tensor in any_weights.tensors.values()]
    else:
        raise Missing("the weights beside it cannot be read")
    known = {*tensors, *(tuple(reversed(shape)) for shape in tensors)}
    strange = [shape for shape in state.shapes if shape not in known]
    if strange:
        said = f"{len(strange)} moments of shapes such as {list(strange[0])}"
        return _finding(state, said, "tensors of those shapes")
    return f"{state.parameters} parameters of {state.file} fit the tensors beside it"


def _trained(adapter: Adapter) -> tuple[int, int]:
    """Return how many factors an adapter trains, and how many whole tensors it may train."""
    factors = sum(
        factor is not None for pair in adapter.pairs for factor in (pair.a, pair.b, pair.magnitude)
    )
    # Biases beside lora_B and rows of tokens count as whole tensors; embeddings may lie along.
    return factors, len(adapter.tensors) - factors


def _finding(state: OptimizerState, found: str, expected: str) -> Finding:
    return Finding(
        message=f"{state.file} holds {found}, the checkpoint holds other ones ({expected}): "
        f"resuming stops with '{MESSAGE} group', or mixes them up",
        evidence=(Evidence(what="state", file=state.file, found=found, expected=expected),),
        cause="another set of tensors was trained than is saved: modules_to_save came back frozen, "
        "or files of two runs were mixed",
        remedy="resume from a checkpoint in which optimizer and weights agree, or start a new "
        "optimizer on these weights",
    )
