"""An adapter whose strength some servers get wrong.

What it does: looks for settings that change how strongly an adapter works and that not every reader
follows: rsLoRA, alpha_pattern, rank_pattern, DoRA, biases of LoRA, repeated layers.

Why it is bad: PEFT applies them all. A server that ignores one scales the change by alpha / r
instead, too weak by the root of the rank under rsLoRA, or leaves the magnitudes of DoRA out, and
says nothing (FM26): sglang#40835, vllm#10798, vllm#55545, TensorRT-LLM#1668, mlx-vlm#845.

Example: `use_rslora: true` with rank 64: a reader that divides by r is eight times too weak.

What to do: merge before serving (`mud-puppy merge`, or PEFT's `merge_and_unload()`), or compare one
answer of the server with one of PEFT.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.facts.checkpoint import Adapter
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe

FILE = "adapter_config.json"
FLAGS = {
    "use_rslora": "alpha / sqrt(r) instead of alpha / r",
    "alpha_pattern": "another alpha for some modules",
    "rank_pattern": "another rank for some modules",
    "use_dora": "a magnitude of its own for every row",
    "lora_bias": "a bias beside lora_B",
    "layer_replication": "layers of the base that occur twice",
}
"""Settings, and what a reader must do about each."""


@probe("MPD207", modes=["FM26"], severity=Severity.NOTE)
def check(adapter: Adapter) -> Finding | str:
    """List the settings that readers differ in."""
    if not adapter.is_lora or not adapter.settings:
        raise NotApplicable("no settings of a LoRA lie here")
    used = [name for name in FLAGS if _is_used(adapter.settings, name)]
    if not used:
        return "its strength is lora_alpha / r in every module, as all readers have it"
    return Finding(
        message=f"{' and '.join(used)} {'changes' if len(used) == 1 else 'change'} how strongly the"
        " adapter works, and not every server follows",
        evidence=tuple(
            Evidence(what=f"{name}: {FLAGS[name]}", file=FILE, found=_show(adapter.settings[name]))
            for name in used
        ),
        cause="the adapter was trained with settings that are newer than some readers",
        remedy="merge it into its base before it is served, or compare one answer with PEFT's",
    )


def _is_used(settings: Mapping[str, Any], name: str) -> bool:
    value = settings.get(name)
    return value is True or (isinstance(value, (dict, list)) and bool(value))


def _show(value: Any) -> Any:
    return value if value is True else f"{len(value)} entries"
