"""Evidence about an adapter: its settings, and its tensors sorted by what PEFT does with them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.evidence.files.inventory import read_settings
from harness.evidence.source import CheckpointEvidence, provides
from harness.facts.checkpoint import Adapter, Files, Pair, Tensor
from harness.registry import Missing, NotApplicable
from mudpuppy.patterns import MAX_STEPS, compile_pattern, worst_steps

PREFIX = "base_model.model."
"""What PEFT puts before every name of the base model."""
FACTOR = re.compile(
    r"^(?P<module>.*?)\.lora_(?P<kind>A|B|embedding_A|embedding_B|magnitude_vector)"
    r"(?:\.(?P<rest>.*))?$"
)
"""A factor of a LoRA: `<module>.lora_A.weight`, with or without an adapter name."""
TOKEN_DELTA = re.compile(r"^(?P<module>.*)\.token_adapter\.trainable_tokens_delta$")
"""Rows of an embedding that were trained alone."""
OTHER_METHODS = re.compile(
    r"(prompt_embeddings|prompt_encoder|ia3_l|vera_lambda|hada_w|lokr_w|oft_[rs]|boft_|lora_E|"
    r"ranknum|fourierft|ln_tuning|adaption_|hra_u|bone_|miss_|vblora_|randlora_|trainable_tokens)"
)
"""Tensors of other PEFT methods, which are left alone here."""
_PLAIN = re.compile(r"[\w.]+")
"""Keys of rank_pattern that are plain module names, as nearly all are."""


@provides("adapter")
def describe_adapter(evidence: CheckpointEvidence) -> Adapter:
    """Return the adapter of the folder."""
    files: Files = evidence.get("files")
    if not files.adapter:
        has_settings = "adapter_config.json" in files.names
        if has_settings:
            raise Missing("adapter_config.json is there, adapter weights are not")
        raise NotApplicable("the folder holds no adapter")
    readable = [f for f in files.adapter if f.tensors and f.problem in ("", "truncated")]
    if not readable:
        raise Missing(f"{files.adapter[0].name} could not be read: {files.adapter[0].detail}")
    tensors = {tensor.name: tensor for file in readable for tensor in file.tensors}
    return sort_adapter(evidence, tensors)


def sort_adapter(evidence: CheckpointEvidence, tensors: dict[str, Tensor]) -> Adapter:
    """Sort the tensors of an adapter into LoRA factors, replaced tensors and unknown keys."""
    sorted_ = _Sorting()
    for key in sorted(tensors):
        sorted_.place(key, tensors[key])
    return Adapter(
        root=str(evidence.folder),
        settings=_settings(evidence),
        tensors=tensors,
        pairs=tuple(made.freeze() for _, made in sorted(sorted_.pairs.items())),
        replaced=sorted_.replaced,
        unknown=tuple(sorted_.unknown),
        names=tuple(sorted(sorted_.names)),
    )


def strip_prefix(key: str) -> str | None:
    """Return the name in the base model, or None when the key has not PEFT's prefix."""
    return key.removeprefix(PREFIX) if key.startswith(PREFIX) else None


@dataclass
class _OpenPair:
    """A pair while its factors are collected."""

    module: str
    factors: dict[str, Tensor] = field(default_factory=dict)

    def freeze(self) -> Pair:
        """Return the finished pair."""
        embedding = "embedding_A" in self.factors or "embedding_B" in self.factors
        word = "embedding_" if embedding else ""
        return Pair(
            module=self.module,
            a=self.factors.get(f"{word}A"),
            b=self.factors.get(f"{word}B"),
            magnitude=self.factors.get("magnitude_vector"),
            is_embedding=embedding,
        )


@dataclass
class _Sorting:
    """Adapter keys while they are sorted."""

    pairs: dict[str, _OpenPair] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)

    def place(self, key: str, tensor: Tensor) -> None:
        """Put one key where it belongs."""
        name = strip_prefix(key)
        factor = FACTOR.match(name or key)
        if factor is not None and name is not None:
            self._place_factor(factor, tensor)
        elif _is_of_another_method(key, name):
            return
        elif name is None or factor is not None:
            self.unknown.append(key)
        elif delta := TOKEN_DELTA.match(name):
            # A resized embedding is saved whole beside its trained rows, and alone has the size.
            self.replaced.setdefault(f"{delta['module']}.weight", key)
        else:
            self.replaced[plain_name(name)] = key

    def _place_factor(self, factor: re.Match[str], tensor: Tensor) -> None:
        module, rest = factor["module"], factor["rest"] or ""
        if rest == "bias":
            return  # `lora_bias=True`: a bias beside lora_B, no factor
        named = rest.removesuffix("weight").strip(".")
        if named:
            self.names.add(named)
        self.pairs.setdefault(module, _OpenPair(module)).factors[factor["kind"]] = tensor


def _is_of_another_method(key: str, name: str | None) -> bool:
    """Whether a key, which is no factor, is one of PEFT's other methods or of a kind of LoRA."""
    if "token_adapter" in key:
        return False
    variant = (
        name is not None and re.search(r"\.lora_(?![ab](?:\.|$))[a-z]\w*(?:\.|$)", name) is not None
    )
    return variant or OTHER_METHODS.search(key) is not None


def plain_name(name: str) -> str:
    """Return the base model's name of a tensor that an adapter stores whole."""
    name = re.sub(r"\.modules_to_save\.(?:[^.]+\.)?(?=(?:weight|bias)$)", ".", name)
    name = re.sub(r"\.modules_to_save\.[^.]+\.", ".", name)
    wrapped = r"(?:\.token_adapter)?\.(?:base_layer|original_module)\.(weight|bias)$"
    return re.sub(wrapped, r".\1", name)


def _settings(evidence: CheckpointEvidence) -> dict[str, Any]:
    try:
        return read_settings(evidence, "adapter_config.json")
    except Missing:
        return {}


def rank_and_alpha(settings: dict[str, Any] | Any, module: str) -> tuple[float, float]:
    """Return the rank and alpha that the settings give a module, patterns included.

    The rule is PEFT's: a pattern key matches a module whose name ends with it, as a regular
    expression; the first that matches counts. Call `check_patterns` first.
    """
    rank = _by_pattern(settings.get("rank_pattern"), module, settings.get("r", 8))
    alpha = _by_pattern(settings.get("alpha_pattern"), module, settings.get("lora_alpha", 8))
    return _number(rank, 0.0), _number(alpha, 0.0)


def scaling(settings: Any, module: str) -> float:
    """Return alpha / r, or alpha / sqrt(r) with rsLoRA; 0 for settings that cannot be used."""
    rank, alpha = rank_and_alpha(settings, module)
    if rank <= 0:
        return 0.0
    return alpha / (rank**0.5 if settings.get("use_rslora") else rank)


def check_patterns(settings: Any, modules: Sequence[str]) -> None:
    """Refuse rank and alpha patterns whose search could take minutes.

    Raises:
        Missing: a pattern is no regular expression or its worst case on these modules is too slow.
    """
    longest = max((len(name) for name in modules), default=1)
    steps = 0
    for name in ("rank_pattern", "alpha_pattern"):
        patterns = settings.get(name)
        for key in patterns if isinstance(patterns, dict) else ():
            if isinstance(key, str) and not _PLAIN.fullmatch(key):
                try:
                    compile_pattern(_peft_form(key), longest)
                    # PEFT matches at the start of a name alone, so the starts do not multiply.
                    steps += worst_steps(_peft_form(key), longest) // longest * len(modules)
                except ValueError as problem:
                    raise Missing(f"{name} '{key[:60]}' is not followed: {problem}") from problem
    if steps > MAX_STEPS:
        raise Missing(f"rank_pattern and alpha_pattern may take {steps:.0e} steps to follow")


def _by_pattern(patterns: Any, module: str, default: Any) -> Any:
    if not isinstance(patterns, dict):
        return default
    for key in patterns:
        if isinstance(key, str) and _matches(key, module):
            return patterns[key]
    return default


def _matches(pattern: str, module: str) -> bool:
    """Whether PEFT's pattern matches; `check_patterns` has refused those that are too slow."""
    if _PLAIN.fullmatch(pattern):
        return module == pattern or module.endswith("." + pattern)
    return re.match(_peft_form(pattern), module) is not None


def _peft_form(pattern: str) -> str:
    """Return the regular expression that PEFT makes of a key of rank_pattern."""
    return rf"(.*\.)?({pattern})$"


def _number(value: Any, default: float) -> float:
    return float(value) if isinstance(value, (int, float)) and abs(value) < 1e9 else default
