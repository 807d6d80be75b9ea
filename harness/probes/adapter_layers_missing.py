"""An adapter with holes: modules that it targets have no factors in some layers.

What it does: `target_modules` names q_proj (and `layers_to_transform`, if set, the layers); layers
0 and 2 have factors for it, layer 1 has none.

Why it is bad: PEFT fills the holes with fresh factors, which add nothing, and says "Found missing
adapter keys while loading the checkpoint". Part of the training is lost (FM34, FM24).

Example: 60 of 64 pairs, after a sharded save in which one rank failed.

What to do: save again from the run, or take an older checkpoint. If the holes are intended, say so
with `layers_to_transform` in adapter_config.json.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from harness.facts.checkpoint import Adapter, strip_wrappers
from harness.findings import Evidence, Finding, Severity, agree
from harness.registry import Missing, probe

_LAYER = re.compile(r"^(.*?\.?(?:layers|h|blocks|block))\.(\d+)\.(.+)$")
_NUMBER = re.compile(r".*\.[^.]*\.(\d{1,6})\.")
"""Where PEFT finds the number of a layer: the last one in the name."""
_OUTER = ("embed_tokens", "wte", "lm_head")
"""Embeddings and heads that language models have under no other name."""
FILE = "adapter_model.safetensors"


@probe("MPD206", modes=["FM34", "FM24", "FM28"], severity=Severity.CRITICAL)
def check(adapter: Adapter, base_names: frozenset[str] | None) -> Finding | str:
    """Look for targeted modules without factors."""
    settings, targets = adapter.settings, adapter.settings.get("target_modules")
    if not isinstance(targets, list) or not adapter.pairs:
        raise Missing("the adapter does not list its target modules by name")
    for word in ("layers_pattern", "target_parameters"):
        if settings.get(word):
            raise Missing(f"the adapter chooses its layers with {word}")
    if isinstance(settings.get("exclude_modules"), str):
        raise Missing("the adapter leaves modules out by a pattern")
    held = {strip_wrappers(pair.module) for pair in adapter.pairs}
    if any("base_layer" in name for name in held):
        raise Missing("the adapter is stacked or adapts fused experts")
    lost = _lost_from_base(held, settings, base_names) if base_names else _holes(held, settings)
    lost += _outer_lost(adapter)
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


def _outer_lost(adapter: Adapter) -> list[str]:
    """Return embeddings and heads that are targets by name and of which the file holds nothing."""
    held = {pair.module.rpartition(".")[2] for pair in adapter.pairs}
    held |= {name.rpartition(".")[0].rpartition(".")[2] for name in adapter.replaced}
    targets = {str(word).rpartition(".")[2] for word in adapter.settings["target_modules"]}
    excluded = adapter.settings.get("exclude_modules")
    left_out = excluded if isinstance(excluded, list) else []
    return [word for word in _OUTER if word in targets - held and word not in left_out]


def _lost_from_base(
    held: set[str], settings: Mapping[str, Any], names: frozenset[str]
) -> list[str]:
    """Return modules of the base that a target names and the adapter lacks."""
    if not held & names:
        return []  # the adapter belongs to another base; that is another probe's finding
    known = frozenset(t for t in settings["target_modules"] if isinstance(t, str))
    wanted = [name for name in names if any(end in known for end in _ends(name))]
    plain = [n for n in wanted if not re.search(r"experts|router|\.gate$|norm$", n)]
    prefixes = {name.split(".layers.")[0] for name in held}
    excluded = settings.get("exclude_modules")
    listed = excluded if isinstance(excluded, list) else ()
    left_out = frozenset(word for word in listed if isinstance(word, str))
    chosen = _chosen_layers(settings)
    return sorted(
        n
        for n in plain
        if n not in held and n.split(".layers.")[0] in prefixes and _is_chosen(n, left_out, chosen)
    )


def _is_chosen(name: str, left_out: frozenset[str], chosen: set[int] | None) -> bool:
    """Whether layers_to_transform and exclude_modules leave a module in."""
    if any(end in left_out for end in _ends(name)):
        return False
    number = _NUMBER.match(name)
    return chosen is None or (number is not None and int(number[1]) in chosen)


def _chosen_layers(settings: Mapping[str, Any]) -> set[int] | None:
    """Return the layers of layers_to_transform; None when it is not set."""
    chosen = settings.get("layers_to_transform")
    if type(chosen) is int:
        return {chosen}
    if isinstance(chosen, list) and chosen:
        return {number for number in chosen if type(number) is int}
    return None


def _ends(name: str) -> list[str]:
    """Return a module's name and every part of it that stands at its end."""
    parts = name.split(".")
    return [".".join(parts[first:]) for first in range(len(parts))]


def _holes(held: set[str], settings: Mapping[str, Any]) -> list[str]:
    """Return modules missing in a layer although an earlier and a later layer have them."""
    layers: dict[tuple[str, str], set[int]] = defaultdict(set)
    for name in held:
        if found := _LAYER.match(name):
            layers[found[1], found[3]].add(int(found[2]))
    used: dict[str, set[int]] = defaultdict(set)
    for (prefix, _), numbers in layers.items():
        used[prefix] |= numbers
    chosen = _chosen_layers(settings)
    if chosen is not None and len(used) == 1:
        used[next(iter(used))] |= chosen
    return sorted(
        f"{prefix}.{number}.{rest}"
        for (prefix, rest), numbers in layers.items()
        for number in used[prefix] - numbers
        if (chosen is not None or number < max(numbers)) and "experts" not in rest
    )
