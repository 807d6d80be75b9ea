"""A model that was unloaded from PEFT and still carries its configuration.

What it does: after `merge_and_unload()` or `unload()` the model is no PEFT model any more, but the
attribute `peft_config` (or transformers' `_hf_peft_config_loaded`) is still set.

Why it is bad: the next `get_peft_model` warns "Already found a `peft_config` attribute in the
model. This will lead to having multiple adapters in the model." and gives the new adapter the state
of the old one; `save_pretrained` may save an adapter where a model is expected (FM21).

Example: SFT, merge, DPO in one process with PEFT older than 0.18.

What to do: `del model.peft_config` after unloading, or update PEFT; better, save the merged model
and load it again before the next stage.
"""

from __future__ import annotations

from harness.facts.behaviour import LiveModel
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe


@probe("MPD501", modes=["FM21"], severity=Severity.MEDIUM)
def check(live_model: LiveModel) -> Finding | str:
    """Look for PEFT's attributes on a model without adapter layers."""
    if not live_model.leftovers:
        return f"{live_model.type_name} carries no leftover of an adapter"
    return Finding(
        message=f"{live_model.type_name} has no adapter, but {' and '.join(live_model.leftovers)} "
        "is set: the next stage will say 'Already found a `peft_config` attribute in the model'",
        evidence=tuple(
            Evidence(what="attribute", tensor=name, found="set", expected="absent")
            for name in live_model.leftovers
        ),
        cause="the adapter was merged or unloaded by a version of PEFT that leaves its attributes",
        remedy="del model.peft_config; if _hf_peft_config_loaded is set, set it to False",
    )
