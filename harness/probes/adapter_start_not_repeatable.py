"""An adapter whose start changed the base, in a way that cannot be repeated exactly.

What it does: reads `init_lora_weights`. PiSSA, OLoRA, CorDA and LoftQ take a part of the base
weights away and put it into the factors, so the adapter belongs to the *changed* base.

Why it is bad: PEFT repeats the decomposition whenever it loads the adapter; `pissa_niter_N` and EVA
do it with random numbers, so every load gives other weights (FM53). Servers and converters that
read the factors alone add them to the untouched base, which counts that part twice.

Example: `init_lora_weights: pissa_niter_16` in adapter_config.json.

What to do: convert to plain LoRA when saving: `model.save_pretrained(DIR,
path_initial_model_for_weight_conversion=START)`, or merge in the process that trained.
"""

from __future__ import annotations

from harness.facts.adapters import starts_in_base
from harness.facts.checkpoint import Adapter
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe


@probe("MPD213", modes=["FM53"], severity=Severity.NOTE)
def check(adapter: Adapter) -> Finding | str:
    """Look for starts that change the base."""
    start = adapter.settings.get("init_lora_weights")
    if not adapter.is_lora or start is None:
        raise NotApplicable("the settings do not say how the factors started")
    if not isinstance(start, str) or not starts_in_base(start):
        return "the start of the factors left the base as it was"
    return Finding(
        message=f"init_lora_weights is '{start[:40]}': the factors hold a part of the base, and "
        "are right only on a base from which it was taken away",
        evidence=(
            Evidence(what="init_lora_weights", file="adapter_config.json", found=start[:40]),
        ),
        cause="the adapter was saved without converting it to plain LoRA",
        remedy="save it with path_initial_model_for_weight_conversion, or merge it with PEFT "
        "before anything else reads it",
    )
