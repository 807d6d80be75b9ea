"""Parameters of a live model whose values do not lie one after the other.

What it does: looks for vectors and matrices that are views with strides, such as a transpose.

Why it is bad: on Apple's MPS, addcmul, addcdiv and linear read such tensors wrongly: the optimizer
does not move them, or a merge differs, without an error (FM55; pytorch#118115, pytorch#118117).
`save_pretrained` stops with "You are trying to save a non contiguous tensor".

Example: `lm_head.weight` made with `.t()` from an embedding.

What to do: `parameter.data = parameter.data.contiguous()` for each, before the optimizer is made.
"""

from __future__ import annotations

from harness.facts.live import LiveState
from harness.findings import Evidence, Finding, Severity, agree
from harness.registry import NotApplicable, probe


@probe("MPD504", modes=["FM55"], severity=Severity.MEDIUM)
def check(live_state: LiveState) -> Finding | str:
    """Look for strided parameters."""
    if not live_state.parameters:
        raise NotApplicable("the object has no parameters")
    strided = live_state.strided
    if not strided:
        return f"all {live_state.parameters} parameters lie in one piece"
    first = next(iter(strided))
    on_mps = any(device.startswith("mps") for device in strided.values())
    return Finding(
        message=f"{agree(len(strided), 'parameter is', 'parameters are')} not contiguous, such as "
        f"{first} on {strided[first]}",
        evidence=tuple(
            Evidence(what="not contiguous", tensor=name, found=device)
            for name, device in strided.items()
        ),
        cause="the parameter was made from a transpose or a slice of another tensor",
        remedy="parameter.data = parameter.data.contiguous(), before the optimizer is made",
        severity=Severity.CRITICAL if on_mps else None,
    )
