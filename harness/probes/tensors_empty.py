"""Tensors of no elements, shape [0].

What it does: the keys are all there, but some tensors have a dimension of size 0.

Why it is bad: sharded training (DeepSpeed ZeRO-3, FSDP) keeps parameters in pieces and leaves empty
ones behind; saved without gathering, the file holds the empty ones (FM24, FM25). Loading stops with
`size mismatch`, or skips them and leaves the base as it was.

Example: `base_model.model.lm_head.weight: shape [0]` in an adapter of 443 bytes.

What to do: gather before saving: `stage3_gather_16bit_weights_on_model_save: true` for DeepSpeed,
`FULL_STATE_DICT` for FSDP; or convert the sharded checkpoint with `zero_to_fp32.py`.
"""

from __future__ import annotations

from harness.facts.checkpoint import Files
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, probe


@probe("MPD108", modes=["FM24", "FM25"], severity=Severity.CRITICAL)
def check(files: Files) -> Finding | str:
    """Look for dimensions of size 0."""
    tensors = [t for file in files.readable for t in file.tensors]
    if not tensors:
        raise Missing("no weights file could be read")
    bad = [tensor for tensor in tensors if 0 in tensor.shape]
    if not bad:
        return f"none of {len(tensors)} tensors is empty"
    return Finding(
        message=f"{len(bad)} of {len(tensors)} tensors have no elements, such as {bad[0].name}",
        evidence=tuple(
            Evidence(what="shape", file=t.file, tensor=t.name, found=list(t.shape)) for t in bad
        ),
        cause="a sharded run saved parameters that it had not gathered",
        remedy="gather the parameters (DeepSpeed: stage3_gather_16bit_weights_on_model_save; FSDP: "
        "FULL_STATE_DICT) and save again",
    )
