"""A live model with an adapter on top of an adapter.

What it does: looks at a model object for PEFT wrappers inside PEFT wrappers, adapter layers inside
adapter layers, and more than one adapter at once.

Why it is bad: `get_peft_model` on a PEFT model trains a second adapter on top of the first, and
what is saved cannot be loaded (FM17). PEFT warns: "Already found a `peft_config` attribute in the
model. This will lead to having multiple adapters in the model."

Example: SFT then DPO on the same object without `merge_and_unload()` between them.

What to do: `model = model.merge_and_unload()` before the next stage, or train the same adapter on.
"""

from __future__ import annotations

from harness.facts.behaviour import LiveModel
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe


@probe("MPD502", modes=["FM17"], severity=Severity.CRITICAL)
def check(live_model: LiveModel) -> Finding | str:
    """Count wrappers and nested adapter layers."""
    evidence = [
        Evidence(what="adapter layer around another", tensor=name)
        for name in live_model.stacked_modules
    ]
    if live_model.nested_wrappers > 1:
        found = live_model.nested_wrappers
        evidence.insert(
            0, Evidence(what="PEFT wrappers around each other", found=found, expected=1)
        )
    if not evidence:
        return f"{live_model.adapter_layers} adapter layers, none inside another"
    return Finding(
        message=f"{live_model.type_name} has an adapter on top of an adapter: {evidence[0].what} "
        f"{evidence[0].tensor or evidence[0].found}",
        evidence=tuple(evidence),
        cause="get_peft_model() was called on a model that already had an adapter",
        remedy="model = model.merge_and_unload() before the next stage",
    )
