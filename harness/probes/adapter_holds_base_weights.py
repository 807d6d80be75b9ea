"""Weights of the base inside an adapter's file.

What it does: lists whole tensors in the file that neither modules_to_save nor bias nor a trained
embedding explains, and compares them with the base when it is known.

Why it is bad: an adapter as large as a model was saved from a run that trained, or kept, the base
itself (FM52): the freeze was lost on reload, or MLX's `load_adapters` left all weights trainable.
Loaders leave the tensors out, and what they learnt with them.

Example: `base_model.model.model.layers.0.mlp.up_proj.weight` beside the factors; 14 GB of adapter.

What to do: look at `model.print_trainable_parameters()` before training. If the tensors differ from
the base, the adapter fits a model nobody has: train again. If they are equal, leave them out of a
copy.
"""

from __future__ import annotations

from harness.facts.adapters import HeldBase
from harness.findings import Evidence, Finding, Severity, agree
from harness.registry import probe

FILE = "adapter_model.safetensors"


@probe("MPD211", modes=["FM52"], severity=Severity.CRITICAL)
def check(held_base: HeldBase) -> Finding | str:
    """Report tensors that no setting explains."""
    if not held_base.unasked:
        return f"no tensor of the base lies in it unasked ({len(held_base.asked)} were asked for)"
    moved = [name for name, differs in held_base.unasked.items() if differs]
    equal = [name for name, differs in held_base.unasked.items() if differs is False]
    known = "" if not moved else f", {len(moved)} of them other than in the base"
    if len(equal) == len(held_base.unasked):
        known = ", equal to those of the base"
    first = (moved or list(held_base.unasked))[0]
    return Finding(
        message=f"{agree(len(held_base.unasked), 'whole tensor lies', 'whole tensors lie')} in the "
        f"adapter's file ({held_base.share:.0%} of its numbers){known}, such as {first}",
        evidence=tuple(
            Evidence(what="base weight in an adapter", file=FILE, tensor=name)
            for name in (*moved, *(n for n in held_base.unasked if n not in moved))
        ),
        cause="the base was trainable when the adapter was saved, or a whole state dict was saved",
        remedy="train again with the base frozen (model.print_trainable_parameters() shows it)"
        if moved
        else "save again with save_pretrained() of the PEFT model, and look at "
        "model.print_trainable_parameters()",
        severity=Severity.CRITICAL
        if moved
        else Severity.MEDIUM
        if len(equal) == len(held_base.unasked)
        else Severity.HIGH,
    )
