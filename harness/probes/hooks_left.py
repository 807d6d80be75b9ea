"""Hooks that somebody left on a live model.

What it does: lists the forward and backward hooks of all modules, without those of torch,
transformers, PEFT, accelerate, DeepSpeed and bitsandbytes.

Why it is bad: a hook may change what a module gives, or keep every activation in memory; what is
measured or trained with it is not the model that is saved: one more thing that a stage left behind
(FM21).

Example: a probe of activations registered `forward` hooks on 32 layers and never called `remove()`.

What to do: keep the handle that `register_forward_hook` returns and call `handle.remove()`.
"""

from __future__ import annotations

from harness.facts.live import LiveState
from harness.findings import Evidence, Finding, Severity, agree
from harness.registry import NotApplicable, probe


@probe("MPD505", modes=["FM21"], severity=Severity.MEDIUM)
def check(live_state: LiveState) -> Finding | str:
    """Report hooks of unknown origin."""
    if not live_state.parameters:
        raise NotApplicable("the object has no parameters")
    hooks = live_state.hooks
    if not hooks:
        return "no module has a hook that the usual libraries did not put there"
    first = hooks[0]
    return Finding(
        message=f"{agree(len(hooks), 'hook is', 'hooks are')} on the model, such as the "
        f"{first.kind} hook {first.function[:120]} of {first.module or 'the model itself'}",
        evidence=tuple(
            Evidence(what=f"{one.kind} hook", tensor=one.module or ".", found=one.function[:200])
            for one in hooks
        ),
        cause="a measurement or a patch was not taken back",
        remedy="call remove() on the handle that register_forward_hook() returned, or load anew",
    )
