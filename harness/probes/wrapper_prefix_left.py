"""The name of a wrapper is left in the tensor names.

What it does: torch.compile, DDP, FSDP and adapters put the model inside a wrapper; a state dict
taken from the wrapper carries its name: `_orig_mod.`, `module.`, `_fsdp_wrapped_module.`,
`.base_layer.`.

Why it is bad: no loader finds the module of that name. An adapter with `_orig_mod.` loads with one
warning, "Found missing adapter keys while loading the checkpoint", and adds nothing; a model starts
with random layers (FM22, FM23). Every `checkpoint-*` of the run has the same fault.

Example: `base_model.model._orig_mod.model.layers.0.self_attn.q_proj.lora_A.weight`.

What to do: rename the keys in a copy (the values are intact), or save again from the inner model:
`accelerator.unwrap_model(model, keep_torch_compile=False).save_pretrained(DIR)`.
"""

from __future__ import annotations

import re

from harness.facts.checkpoint import Files, Tensor, find_wrapper
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, probe

_ADAPTER_PARTS = re.compile(r"^(base_model\.model)\.|\.(base_layer)\.|\.(lora_[AB])\.")


@probe("MPD303", modes=["FM22", "FM23"], severity=Severity.CRITICAL)
def check(files: Files) -> Finding | str:
    """Look for the segments of wrappers in the names of all tensors."""
    tensors = [t for file in (*files.weights, *files.adapter) for t in file.tensors]
    if not tensors:
        raise Missing("no weights file could be read")
    inside = {id(t) for file in files.weights for t in file.tensors}
    found = [(t, s) for t in tensors if (s := _segment(t, in_model=id(t) in inside))]
    if not found:
        return f"no wrapper is left in the names of {len(tensors)} tensors"
    tensor, segment = found[0]
    return Finding(
        message=f"{len(found)} of {len(tensors)} tensor names carry the wrapper '{segment}', such "
        f"as {tensor.name}: loaders do not find their modules",
        evidence=tuple(
            Evidence(what=f"'{s}' in the name", file=t.file, tensor=t.name) for t, s in found
        ),
        cause="the state dict was taken from the wrapped model (torch.compile, DDP, FSDP, PEFT)",
        remedy="save again from model.merge_and_unload(); taking the segment out of the names "
        "would lose what the adapter learnt"
        if _ADAPTER_PARTS.search(tensor.name) and id(tensor) in inside
        else f"remove '{segment}.' from the names in a copy, or save again from the unwrapped "
        "model",
    )


def _segment(tensor: Tensor, *, in_model: bool) -> str:
    segment = find_wrapper(tensor.name)
    name = tensor.name
    # Words that all of them hold, which are found in a fifth of the time.
    if segment or not in_model or not ("base_" in name or "lora_" in name):
        return segment
    part = _ADAPTER_PARTS.search(name)
    return next((group for group in part.groups() if group), "") if part else ""
