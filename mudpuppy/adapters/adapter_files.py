"""Read a saved LoRA adapter from its files: what it says, and what each tensor is for. No torch."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mudpuppy.errors import ModelError, shown
from mudpuppy.patterns import MAX_STEPS, worst_steps
from mudpuppy.safefile import TensorEntry, read_header

SETTINGS_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MAX_SETTINGS_BYTES = 10_000_000
MAX_NAME_CHARS = 500
"""Longest module name that a rank or alpha pattern is matched against."""

PREFIX = "base_model.model."
"""What PEFT puts before the name that a module has in the base."""
ROLES = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_B.bias": "b_bias",
    "lora_embedding_A": "embedding_a",
    "lora_embedding_B": "embedding_b",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "token_adapter.trainable_tokens_delta": "tokens",
}
"""Endings of a tensor's name, and what the tensor is."""

_HARMLESS = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode"),
        *("layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core", "peft_type"),
        *("peft_version", "qalora_group_size", "revision", "target_modules", "task_type"),
        *("modules_to_save", "ensure_weight_tying", "runtime_config", "save_embedding_layers"),
        *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"),
        *("fan_in_fan_out", "bias", "lora_bias", "init_lora_weights", "trainable_token_indices"),
        *("eva_config", "lora_ga_config", "corda_config"),  # they only choose initial weights
    }
)
_INITS = (True, False, "gaussian", "eva", "orthogonal")
"""Ways to start an adapter that leave the base as it is."""


@dataclass
class AdaptedModule:
    """The tensors of one adapted module, by their role."""

    name: str
    """The module's name in the live base model."""
    parts: dict[str, TensorEntry] = field(default_factory=dict)
    """Tensors by role, as in `ROLES`."""


@dataclass(frozen=True, kw_only=True)
class AdapterFiles:
    """A saved LoRA adapter."""

    folder: Path
    """Where it lies."""
    settings: dict[str, Any]
    """Its adapter_config.json."""
    modules: dict[str, AdaptedModule]
    """Adapted modules by name."""
    replaced: dict[str, TensorEntry]
    """Whole tensors that the adapter brings, by the name in the live base model."""

    def scale(self, module: str) -> float:
        """Return what BA is multiplied by, after checking the rank (alpha / r, or alpha / sqrt r).

        Raises:
            ModelError: the tensors have another rank than the settings say.
        """
        parts = self.modules[module].parts
        rank = (parts.get("a") or parts["embedding_a"]).shape[0]
        said = self._pattern("rank_pattern", module, self.settings.get("r", 8))
        if said != rank:
            raise ModelError(
                f"{self.folder}: {module} has the rank {rank}, and {SETTINGS_FILE} says {said}"
            )
        alpha = self._pattern("alpha_pattern", module, self.settings.get("lora_alpha", 8))
        scale = alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank)
        if not math.isfinite(scale):
            raise ModelError(f"{self.folder}: {module} is scaled by {alpha} / {rank}")
        return scale

    def _pattern(self, key: str, module: str, default: Any) -> int | float:
        """Return the value of the first pattern that PEFT would match with `module`."""
        value = default
        for pattern, own in (self.settings.get(key) or {}).items():
            if _matches(pattern, module, self.folder):
                value = own
                break
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise ModelError(f"{self.folder}: {key} gives {module} the value {shown(value)}")
        return value


def _matches(pattern: str, module: str, folder: Path) -> bool:
    """Return whether a rank or alpha pattern is about `module`: its name, or the end of it."""
    if re.fullmatch(r"[\w.]*", pattern):
        # a dot matches any character, as it does for PEFT
        return bool(re.search(rf"(?:^|\.)(?:{pattern})$", module))
    try:
        steps = worst_steps(pattern, MAX_NAME_CHARS)
        if steps > MAX_STEPS:
            raise ValueError("it may take too long")
        return bool(re.search(rf"(?:^|\.)(?:{pattern})$", module))
    except (ValueError, IndexError, re.error, RecursionError, OverflowError) as error:
        raise ModelError(
            f"{folder}: the pattern {shown(pattern)} cannot be used: {error}"
        ) from None


def read_adapter(folder: Path) -> AdapterFiles:
    """Read settings and headers of an adapter folder, and refuse what cannot be merged by name.

    Raises:
        ModelError: it is no LoRA adapter, is damaged, or uses what this merge cannot do.
    """
    settings = read_adapter_settings(folder)
    _refuse_options(folder, settings)
    path = folder / WEIGHTS_FILE
    try:
        entries = read_header(path)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder}: the adapter's weights cannot be read: {error}",
            hint="pickled weights (adapter_model.bin) are never loaded: save it with safetensors",
        ) from error
    if not entries:
        raise ModelError(
            f"{path} holds no tensor",
            hint="it was saved without gathering its parts (ZeRO-3, FSDP): save it again",
        )
    modules: dict[str, AdaptedModule] = {}
    replaced: dict[str, TensorEntry] = {}
    for name, entry in entries.items():
        _sort(folder, name, entry, modules, replaced)
    for module in modules.values():
        _require_complete(folder, module, settings)
    return AdapterFiles(folder=folder, settings=settings, modules=modules, replaced=replaced)


def read_adapter_settings(folder: Path) -> dict[str, Any]:
    """Return adapter_config.json of a LoRA adapter.

    Raises:
        ModelError: there is none, it is damaged, or it is of another kind of adapter.
    """
    path = folder / SETTINGS_FILE
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ValueError("it is no regular file")
        if path.stat().st_size > MAX_SETTINGS_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes")
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise ModelError(
            f"{folder} is no adapter: {SETTINGS_FILE} cannot be read ({reason})",
            hint="name the folder that holds adapter_config.json",
        ) from error
    kind = settings.get("peft_type") if isinstance(settings, dict) else None
    if kind != "LORA":
        raise ModelError(f"{folder} holds an adapter of the type {shown(kind)}, and not of LORA")
    return dict(settings)


def _refuse_options(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse what would make the merged weights other ones than W + scale * BA."""
    if settings.get("target_parameters"):
        raise ModelError(
            f"{folder} adapts fused expert parameters (target_parameters: "
            f"{shown(settings['target_parameters'])}), which the base stores expert by expert",
            hint="load base and adapter with PEFT and call merge_and_unload()",
        )
    unknown = [
        key
        for key, value in settings.items()
        # empty means off; LoftQ's settings only say how the base was made
        if value and key not in _HARMLESS and key != "loftq_config"
    ]
    if unknown:
        raise ModelError(
            f"{folder} uses {', '.join(sorted(unknown)[:5])}, which this merge does not know",
            hint="load base and adapter with PEFT and call merge_and_unload()",
        )
    init = settings.get("init_lora_weights", True)
    if init not in _INITS:
        raise ModelError(
            f"{folder} was started with {shown(init)}, which changes the base: the adapter alone "
            "does not say what the weights were",
            hint="save it again with path_initial_model_for_weight_conversion (PEFT)",
        )
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(settings.get(key) or {}, dict):
            raise ModelError(f"{folder}: {key} is {shown(settings[key])} and no mapping")


def _sort(
    folder: Path,
    name: str,
    entry: TensorEntry,
    modules: dict[str, AdaptedModule],
    replaced: dict[str, TensorEntry],
) -> None:
    """Put one tensor where it belongs.

    Raises:
        ModelError: its name follows no pattern of PEFT's.
    """
    if name.count(PREFIX) != 1 or not name.startswith(PREFIX) or len(name) > MAX_NAME_CHARS:
        hint = "it was stacked on another adapter, or saved from a compiled model (_orig_mod)"
        raise ModelError(
            f"{folder}: the tensor {shown(name)} does not have PEFT's name ({PREFIX}...)", hint=hint
        )
    inner = name.removeprefix(PREFIX)
    for ending, role in ROLES.items():
        if inner.endswith(f".{ending}"):
            module = inner.removesuffix(f".{ending}")
            parts = modules.setdefault(module, AdaptedModule(module)).parts
            if role in parts:
                raise ModelError(f"{folder}: {module} has two tensors for {ending}")
            parts[role] = entry
            return
    if "lora_" in inner or "trainable_tokens" in inner:
        raise ModelError(f"{folder}: what the tensor {shown(name)} is for is not known")
    plain = inner.replace(".base_layer.", ".")
    if plain in replaced:
        raise ModelError(f"{folder}: two tensors replace {plain}")
    replaced[plain] = entry


def _require_complete(folder: Path, module: AdaptedModule, settings: dict[str, Any]) -> None:
    """Refuse a module with half a pair, with wrong shapes, or without its DoRA magnitudes."""
    parts = module.parts
    pairs = [pair for pair in (("a", "b"), ("embedding_a", "embedding_b")) if {*pair} & {*parts}]
    if not pairs and set(parts) == {"tokens"}:
        return
    if len(pairs) != 1 or not {*pairs[0]} <= {*parts} or "tokens" in parts:
        raise ModelError(f"{folder}: {module.name} has {', '.join(sorted(parts))}: A and B belong")
    a, b = parts[pairs[0][0]], parts[pairs[0][1]]
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or 0 in a.shape + b.shape:
        raise ModelError(
            f"{folder}: A {a.shape} and B {b.shape} of {module.name} do not fit each other"
        )
    for entry in parts.values():
        if entry.dtype not in ("F32", "F16", "BF16", "F64"):
            raise ModelError(f"{folder}: {entry.name} is of the type {shown(entry.dtype)}")
    if bool(settings.get("use_dora")) != ("magnitude" in parts):
        lacks = "lacks" if settings.get("use_dora") else "has"
        raise ModelError(
            f"{folder}: {module.name} {lacks} lora_magnitude_vector, and {SETTINGS_FILE} says "
            f"use_dora = {bool(settings.get('use_dora'))}"
        )
