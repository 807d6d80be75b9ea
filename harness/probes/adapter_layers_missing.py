"""An adapter with holes: modules that it targets have no factors in some layers.

What it does: `target_modules` names q_proj, layers 0 and 2 have factors for it, layer 1 has none.

Why it is bad: PEFT fills the holes with fresh factors, which add nothing, and says "Found missing
adapter keys while loading the checkpoint". Part of the training is lost (FM34, FM24).

Example: 60 of 64 pairs, after a sharded save in which one rank failed.

What to do: save again from the run, or take an older checkpoint. If the holes are intended, say so
with `layers_to_transform` in adapter_config.json.
"""

from __future__ import annotations

import re
from collections import defaultdict

from harness.facts.checkpoint import Adapter, strip_wrappers
from harness.findings import Evidence, Finding, agree
from harness.registry import Missing, probe

_LAYER = re.compile(r"^(.*?\.?(?:layers|h|blocks|block))\.(\d+)\.(.+)$")
FILE = "adapter_model.safetensors"


@probe("MPD206", modes=["FM34", "FM24"])
def check(adapter: Adapter, base_names: frozenset[str] | None) -> Finding | str:
    """Look for targeted modules without factors."""
    settings, targets = adapter.settings, adapter.settings.get("target_modules")
    if not isinstance(targets, list) or not adapter.pairs:
        raise Missing("the adapter does not list its target modules by name")
    for word in ("layers_to_transform", "layers_pattern", "exclude_modules", "target_parameters"):
        if settings.get(word):
            raise Missing(f"the adapter chooses its layers with {word}")
    held = {strip_wrappers(pair.module) for pair in adapter.pairs}
    if any("base_layer" in name for name in held):
        raise Missing("the adapter is stacked or adapts fused experts")
    lost = _lost_from_base(held, targets, base_names) if base_names else _holes(held)
    if not lost:
        return f"{len(held)} modules have factors, without holes between layers"
    return Finding(
        message=f"{agree(len(lost), 'targeted module has', 'targeted modules have')}"
        f" no factors, such as {lost[0]}; "
        f"{len(held)} have",
        evidence=tuple(Evidence(what="no factors", file=FILE, tensor=name) for name in lost),
        cause="the save was partial, or keys were removed afterwards",
        remedy="save again from the run or take an older checkpoint; if intended, set "
        "layers_to_transform in adapter_config.json",
    )


def _lost_from_base(held: set[str], targets: list[str], names: frozenset[str]) -> list[str]:
    """Return modules of the base that a target names and the adapter lacks."""
    if not held & names:
        return []  # the adapter belongs to another base; that is another probe's finding
    known = frozenset(t for t in targets if isinstance(t, str))
    wanted = [name for name in names if any(end in known for end in _ends(name))]
    plain = [n for n in wanted if not re.search(r"experts|router|\.gate$|norm$", n)]
    prefixes = {name.split(".layers.")[0] for name in held}
    return sorted(n for n in plain if n not in held and n.split(".layers.")[0] in prefixes)


def _ends(name: str) -> list[str]:
    """Return a module's name and every part of it that stands at its end."""
    parts = name.split(".")
    return [".".join(parts[first:]) for first in range(len(parts))]


def _holes(held: set[str]) -> list[str]:
    """Return modules missing in a layer although an earlier and a later layer have them."""
    layers: dict[tuple[str, str], set[int]] = defaultdict(set)
    for name in held:
        if found := _LAYER.match(name):
            layers[found[1], found[3]].add(int(found[2]))
    used: dict[str, set[int]] = defaultdict(set)
    for (prefix, _), numbers in layers.items():
        used[prefix] |= numbers
    return sorted(
        f"{prefix}.{number}.{rest}"
        for (prefix, rest), numbers in layers.items()
        for number in used[prefix] - numbers
        if number < max(numbers) and "experts" not in rest
    )
