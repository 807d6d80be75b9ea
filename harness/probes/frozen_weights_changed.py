"""Weights that the adapter does not train have changed.

What it does: compares every tensor of a merged model that the adapter leaves alone with the base.

Why it is bad: a LoRA run that moves the frozen weights is not a LoRA run: the freeze was lost when
the model was loaded, and what was trained is not in the adapter (FM52).

Example: `model.layers.3.input_layernorm.weight` is 2 % from the base; the adapter targets q_proj.

What to do: load adapter and base and look at `requires_grad` of all parameters. Merge again from
the original base, then compare the outputs of adapter and merged model.
"""

from __future__ import annotations

from harness.facts.merges import BaseFit, MergeStory
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, NotApplicable, probe


@probe("MPD406", modes=["FM52"], severity=Severity.CRITICAL)
def check(base_fit: BaseFit, merge_story: MergeStory) -> Finding | str:
    """Look for a few tensors that moved in a model whose base is otherwise the right one."""
    if base_fit.adapter_alone:
        raise NotApplicable("the folder holds an adapter alone, which changes no weights")
    if not base_fit.frozen:
        raise Missing("no adapter is known that leaves tensors alone; pass --adapter PATH")
    if base_fit.moved:
        return "the base is another one: see base-mismatch"
    if not base_fit.astray:
        return f"tensors that the adapter leaves alone are those of the base {base_fit.base}"
    if merge_story.is_on_four_bits:
        return "the base went through four bits as a whole: see merge-rounded"
    if merge_story.carries_another:
        return "another adapter was merged into them: see merge-carries-another"
    worst = base_fit.astray[0]
    return Finding(
        message=f"{len(base_fit.astray)} tensors that the adapter does not train differ from the "
        f"base: {worst.name} by {min(worst.relative, 1e9):.2g} of its norm",
        evidence=tuple(
            Evidence(
                what="relative distance",
                tensor=one.name,
                found=min(one.relative, 1e9),
                expected=f"at most {one.tolerance:.2g}",
            )
            for one in base_fit.astray
        ),
        cause="the base was not frozen, or the tensors were edited after the merge",
        remedy="merge again from the original base and the adapter, into an empty folder",
    )
