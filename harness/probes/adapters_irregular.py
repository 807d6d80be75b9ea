"""Adapter layers of one live model that are not in the same state.

What it does: compares the layers that carry adapters: which adapters each applies, which are merged
into its weight, whether it applies any. PEFT calls a state that differs between layers "irregular".

Why it is bad: part of the model answers with the adapter and part without it, or with the adapter
twice; what is saved or merged from it is right in some layers only (FM17, FM20).
`get_model_status()` says so to whoever asks.

Example: `merge_adapter()` was interrupted: 12 of 64 layers hold the change in their weight.

What to do: `model.unmerge_adapter()`, `model.set_adapter(NAME)` and
`model.enable_adapter_layers()`; then look again. If that does not help, load base and adapter anew.
"""

from __future__ import annotations

from collections.abc import Iterator

from harness.facts.live import LiveLayer, LiveState
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe


@probe("MPD503", modes=["FM17", "FM20", "FM21"], severity=Severity.HIGH)
def check(live_state: LiveState) -> Finding | str:
    """Look for layers that differ from the others."""
    layers = live_state.layers
    if not layers:
        raise NotApplicable("the model carries no adapter layers")
    found = [*_merged(layers), *_active(layers), *_enabled(layers)]
    if not found:
        return f"{len(layers)} adapter layers are in one state"
    return Finding(
        message=f"the adapter layers are irregular: {found[0].what} in {found[0].found}, and not "
        "in the others",
        evidence=tuple(found),
        cause="a merge, or a change of the active adapter, that reached only some layers",
        remedy="model.unmerge_adapter(), model.set_adapter(NAME), model.enable_adapter_layers(); "
        "or load base and adapter anew",
    )


def _merged(layers: tuple[LiveLayer, ...]) -> Iterator[Evidence]:
    for name in sorted({name for one in layers for name in one.merged}):
        holding = [one for one in layers if name in one.available or name in one.merged]
        merged = [one for one in holding if name in one.merged]
        if len(merged) < len(holding):
            yield _say(f"'{name}' is merged", merged, holding)


def _active(layers: tuple[LiveLayer, ...]) -> Iterator[Evidence]:
    for name in sorted({name for one in layers for name in one.active}):
        holding = [one for one in layers if name in one.available]
        active = [one for one in holding if name in one.active]
        if 0 < len(active) < len(holding):
            yield _say(f"'{name}' is active", active, holding)


def _enabled(layers: tuple[LiveLayer, ...]) -> Iterator[Evidence]:
    enabled = [one for one in layers if one.enabled]
    if 0 < len(enabled) < len(layers):
        yield _say("adapters are enabled", enabled, layers)


def _say(what: str, some: list[LiveLayer], of: tuple[LiveLayer, ...] | list[LiveLayer]) -> Evidence:
    return Evidence(what=what, tensor=some[0].name, found=f"{len(some)} of {len(of)} layers")
