"""A live model with adapters whose base would be trained too.

What it does: looks at `requires_grad` of the weights inside adapted layers.

Why it is bad: an adapter run with a trainable base moves weights that the adapter does not hold:
the file that is saved fits a model nobody has (FM52), and the optimizer needs many times the
memory.

Example: `model.requires_grad_(True)` after `get_peft_model`, to make gradient checkpointing work.

What to do: `for name, p in model.named_parameters(): p.requires_grad = "lora_" in name`, or
`model.enable_input_require_grads()` for gradient checkpointing; then
`model.print_trainable_parameters()`.
"""

from __future__ import annotations

from harness.facts.live import LiveState
from harness.findings import Evidence, Finding, Severity, agree
from harness.registry import NotApplicable, probe


@probe("MPD506", modes=["FM52"], severity=Severity.HIGH)
def check(live_state: LiveState) -> Finding | str:
    """Report base weights that require a gradient."""
    if not live_state.layers:
        raise NotApplicable("the model carries no adapter layers")
    found = live_state.trainable_base
    if not found:
        return f"the base is frozen in {len(live_state.layers)} adapter layers"
    return Finding(
        message=f"{agree(len(found), 'base weight requires', 'base weights require')} a gradient "
        f"below the adapters, such as {found[0]}",
        evidence=tuple(Evidence(what="requires_grad", tensor=n, found=True) for n in found),
        cause="requires_grad was set for all parameters after the adapter was put on",
        remedy="freeze the base again and look at model.print_trainable_parameters()",
    )
