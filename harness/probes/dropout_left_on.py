"""Dropout of a live model that is switched on.

What it does: looks for dropout modules of the base with a probability above zero that are in
training mode.

Why it is bad: what such a model answers, and every number measured on it, is random (as in FM53).
In the middle of training that is as it should be; a model that is in evaluation mode with some of
its modules left training was switched in part.

Example: `model.eval()` was called before a module was exchanged.

What to do: `model.eval()` before asking, merging or comparing; `model.train()` before training.
"""

from __future__ import annotations

from harness.facts.live import LiveState
from harness.findings import Evidence, Finding, Severity, agree
from harness.registry import NotApplicable, probe


@probe("MPD508", modes=["FM53"], severity=Severity.NOTE)
def check(live_state: LiveState) -> Finding | str:
    """Report active dropouts."""
    if not live_state.parameters:
        raise NotApplicable("the object has no parameters")
    found = live_state.dropouts
    if not found:
        return "no dropout of the base is switched on"
    partly = "" if live_state.is_training else " though the model is in evaluation mode"
    return Finding(
        message=f"{agree(len(found), 'dropout module is', 'dropout modules are')} switched on"
        f"{partly}, such as {found[0]}: its answers are random",
        evidence=tuple(Evidence(what="dropout", tensor=name, found="training") for name in found),
        cause="model.train() without model.eval() after it, or a module that was put in later",
        remedy="model.eval()",
        severity=None if live_state.is_training else Severity.MEDIUM,
    )
