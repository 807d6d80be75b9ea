"""Which tensors have values that can be read here, by their types alone; imports no numpy."""

from __future__ import annotations

from harness.evidence.files.nothing import explain_no_weights
from harness.evidence.source import CheckpointEvidence, provides
from harness.facts.checkpoint import Files, Tensor
from harness.registry import Missing

FLOATS = frozenset(
    ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
)
"""Float types that `arrays.decode` knows and that hold whole bytes."""
INTEGERS = frozenset(("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL"))
"""Integer types that it knows."""
COMPLEX = frozenset(("C64",))
"""Types that are scanned for what is not finite, and not decoded."""
ALWAYS_FINITE = frozenset(("F4", "F6_E2M3", "F6_E3M2"))
"""Float types that have neither NaN nor infinity."""


def can_decode(tensor: Tensor) -> bool:
    """Whether the values of a tensor can be read here (4- and 6-bit and complex types cannot)."""
    return is_float(tensor) or tensor.dtype in INTEGERS


def is_float(tensor: Tensor) -> bool:
    """Whether a tensor holds floating-point values that can be read here."""
    return tensor.dtype in FLOATS or _is_decoded_block(tensor.dtype)


def _is_decoded_block(dtype: str) -> bool:
    """Whether a type of ggml's is decoded by its package; the types of safetensors never are."""
    if dtype in INTEGERS | COMPLEX | ALWAYS_FINITE:
        return False
    from harness.evidence.values.blocks import is_decoded

    return is_decoded(dtype)


@provides("decodable")
def list_decodable(evidence: CheckpointEvidence) -> tuple[Tensor, ...]:
    """Return every tensor whose values can be read, by the headers alone."""
    files: Files = evidence.get("files")
    described = [*files.weights, *files.adapter]
    levels = _levels_in_floats(files)
    wanted = tuple(
        tensor
        for file in described
        if file.problem in ("", "truncated")
        for tensor in file.tensors
        if (can_decode(tensor) or tensor.dtype in COMPLEX) and tensor.end <= file.size_bytes
        if tensor.name not in levels
    )
    if not wanted:
        if not described:
            raise Missing(explain_no_weights(files))
        raise Missing(f"no tensor could be read ({described[0].name}: {described[0].detail})")
    return wanted


def _levels_in_floats(files: Files) -> set[str]:
    """Return the weights of bitsandbytes whose levels lie in floats, so that FSDP can shard them.

    As numbers they are noise: any bits may be a NaN.
    """
    names = [tensor.name for file in files.weights for tensor in file.tensors]
    mark = ".quant_state.bitsandbytes__"
    return {name.partition(mark)[0] for name in names if mark in name}


@provides("undecodable")
def list_undecodable(evidence: CheckpointEvidence) -> tuple[Tensor, ...]:
    """Return every tensor of which it cannot be said here whether its values are finite."""
    files: Files = evidence.get("files")
    tensors = [tensor for file in (*files.weights, *files.adapter) for tensor in file.tensors]
    judged = COMPLEX | ALWAYS_FINITE
    return tuple(t for t in tensors if not (can_decode(t) or t.dtype in judged))
