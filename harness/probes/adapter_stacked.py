"""An adapter on top of an adapter.

What it does: a second training stage called `get_peft_model` on a model that was already wrapped.
The file holds keys that pass two wrappers, or factors of modules that its config does not target.

Why it is bad: when it is loaded again, PEFT finds no place for part of the tensors, warns "Found
missing adapter keys while loading the checkpoint" and goes on. The first stage is gone, and the
second was trained for a model that no longer exists (FM17, FM18). While training, the only sign is
"Already found a `peft_config` attribute in the model. This will lead to having multiple adapters in
the model."

Example: SFT with rank 8, then DPO with rank 1 on the same model object: voice score 0.47 before,
0.00 after, accuracy 0.77 before, 0.02 after, while the loss fell.

What to do: between stages, `model = model.merge_and_unload()` (keep what it returns) or continue
with the same adapter: `PeftModel.from_pretrained(base, PATH, is_trainable=True)`. A file that was
saved stacked cannot be repaired: train the second stage again from the first stage's checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from harness.facts.adapters import EMBEDDINGS, HEADS
from harness.facts.checkpoint import Adapter, strip_wrappers
from harness.findings import Evidence, Finding, Severity, agree
from harness.registry import NotApplicable, probe

_TWICE = re.compile(r"^(?:base_model\.model\.){2,}")
_NUMBERED = re.compile(r"\.lora_(?:embedding_)?[AB](?:_|\.(?:default|adapter)_)\d+(?:\.|$)")
"""Factors of a second adapter that a name of its own keeps apart: `lora_A_1`, `default_0`."""
_INSIDE = re.compile(r"\.(?:base_layer|lora_[AB]|lora_embedding_[AB])(?:\.|$)")
FILE = "adapter_model.safetensors"


@probe("MPD201", modes=["FM17", "FM18"], severity=Severity.CRITICAL)
def check(adapter: Adapter) -> Finding | str:
    """Look for two wrappers in a key, and for factors that the config does not target."""
    if not adapter.tensors:
        raise NotApplicable("the adapter holds no tensors")
    nested = [
        key for key in adapter.tensors if _TWICE.match(strip_wrappers(key)) or _NUMBERED.search(key)
    ]
    nested += [
        f"{pair.module}.lora_A"
        for pair in adapter.pairs
        if _INSIDE.search(pair.module) and "experts" not in pair.module
    ]
    if nested:
        return _finding(
            f"{len(nested)} keys pass two adapter wrappers or belong to a second adapter, such as "
            f"{nested[0]}",
            [Evidence(what="nested key", file=FILE, tensor=key) for key in nested],
        )
    if len(adapter.names) > 1:
        return _finding(
            f"one file holds {len(adapter.names)} adapters: {', '.join(adapter.names[:4])}",
            [Evidence(what="adapter name inside keys", file=FILE, found=list(adapter.names[:5]))],
        )
    stray = _untargeted(adapter)
    if stray:
        targets = adapter.settings.get("target_modules")
        return _finding(
            f"{agree(len(stray), 'module has', 'modules have')} factors outside target_modules, "
            f"such as {stray[0]}",
            [
                Evidence(what="factors without a target", file=FILE, tensor=name, expected=targets)
                for name in stray
            ],
        )
    return f"the factors of {len(adapter.pairs)} modules are those that the config targets"


def _finding(message: str, evidence: Iterable[Evidence]) -> Finding:
    return Finding(
        message=f"{message}; PEFT drops them with 'Found missing adapter keys while loading the "
        "checkpoint'",
        evidence=tuple(evidence),
        cause="get_peft_model() was called on a model that already had an adapter ('Already found "
        "a `peft_config` attribute in the model')",
        remedy="train the later stage again from a model that was merged first: "
        "model = model.merge_and_unload()",
    )


def _untargeted(adapter: Adapter) -> list[str]:
    """Return adapted modules that target_modules does not name; empty when that cannot be said."""
    targets = adapter.settings.get("target_modules")
    if not isinstance(targets, list) or not all(isinstance(t, str) for t in targets) or not targets:
        return []
    parameters = adapter.settings.get("target_parameters")
    if isinstance(parameters, list) and parameters:
        return []  # factors of parameters carry the name of the module around them
    if adapter.settings.get("ensure_weight_tying"):
        targets = [*targets, *HEADS, *EMBEDDINGS]  # PEFT adapts the partner of a tied module too
    wanted = frozenset(targets)
    return [
        pair.module
        for pair in adapter.pairs
        if "experts" not in pair.module and not _is_target(strip_wrappers(pair.module), wanted)
    ]


def _is_target(module: str, targets: frozenset[str]) -> bool:
    parts = module.split(".")
    return any(".".join(parts[first:]) in targets for first in range(len(parts)))
