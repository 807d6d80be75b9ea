"""Tensors that the model needs and its files do not hold.

What it does: a layer, a projection or the output head is absent from the weights, though the
configuration says it exists.

Why it is bad: transformers fills what is missing with random values and only warns ("Some weights
... were not initialized from the model checkpoint"). One random layer is enough to ruin a model
(FM34); an inventory that disagrees with config.json makes readers invent or lose layers (FM46).

Example: `model.layers.31.*` absent: num_hidden_layers is 32, the files hold 31 layers.

What to do: take the missing tensors from a complete copy of this checkpoint. If the configuration
is what is wrong (copied from a larger model), correct num_hidden_layers or tie_word_embeddings.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from harness.facts.adapters import SURE_HEADS
from harness.facts.checkpoint import Base, Weights, find_wrapper, strip_wrappers
from harness.findings import Evidence, Finding, Severity, agree
from harness.registry import Missing, probe

_LAYER = re.compile(r"^(.*?(?:layers|h|blocks|block))\.(\d+)\.(.+)$")
_ATTENTION = tuple(f"self_attn.{name}_proj" for name in "qkvo")
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_NORMS = ("input_layernorm", "post_attention_layernorm")
_MORE_NORMS = (*_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")
_QK = ("self_attn.q_norm", "self_attn.k_norm")
FAMILIES = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "gemma"), (*_ATTENTION, *_MLP, *_NORMS)),
    "qwen3": (*_ATTENTION, *_QK, *_MLP, *_NORMS),
    "gemma2": (*_ATTENTION, *_MLP, *_MORE_NORMS),
    "gemma3_text": (*_ATTENTION, *_QK, *_MLP, *_MORE_NORMS),
    "mixtral": (*_ATTENTION, *_NORMS),
    "phi3": (
        "self_attn.qkv_proj",
        "self_attn.o_proj",
        "mlp.gate_up_proj",
        "mlp.down_proj",
        *_NORMS,
    ),
}
"""Modules of every layer, for families whose layers are all alike."""
OUTSIDE = {
    "gpt2": ("wte", "wpe", "ln_f"),
    "gpt_neox": ("embed_in", "final_layer_norm"),
    "falcon": ("word_embeddings", "ln_f"),
    "bloom": ("word_embeddings", "ln_f"),
    "phi": ("embed_tokens", "final_layernorm"),
    "opt": ("embed_tokens", "embed_positions"),
}
"""What other families have outside of their layers, besides the head."""
_ENCODER = (("encoder.layer", "num_hidden_layers"),)
_BOTH = (("encoder.layers", "encoder_layers"), ("decoder.layers", "decoder_layers"))
STACKS = {
    **dict.fromkeys(("gpt2", "bloom"), (("h", "n_layer"),)),
    **dict.fromkeys(("bert", "roberta", "electra", "vit"), _ENCODER),
    **dict.fromkeys(("bart", "whisper"), _BOTH),
    **dict.fromkeys(
        ("t5", "mt5"), (("encoder.block", "num_layers"), ("decoder.block", "num_decoder_layers"))
    ),
}
"""Layers of families that are not called `layers` or lie in two stacks, and the setting that counts
them."""
PROJECTORS = ("llava", "llava_next", "gemma3", "paligemma", "mistral3", "internvl", "aya_vision")
"""Families whose images come in through a `multi_modal_projector`."""
_SCORES = ("score", "classifier", "classification_head", "logits_proj", "cls_head", "summary")
"""Words of heads that give a score or a class."""
_BY_LAYER = ("relative_attention_bias", "experts", "shared_transf")
"""Parts that some layers of a healthy model have and others lack."""
_EXPERT = re.compile(r"^(.*\.experts\.)(\d{1,6})\.(.+)$")
_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""What families call the number of experts of a layer."""
_QUANTISED = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|SCB|weight_format|weight_(?:scale(?:_inv)?|packed|shape"
    r"|zero_point|g_idx)|weight\.(?:(?:nested_)?(?:absmax|quant_map)|quant_state\.\w+))$"
)
"""Parts of a layer in few bits; together they are its weight, and MPD321 looks at them."""
MOST_LAYERS = 2_000
"""Layers that are compared with each other; real models have some hundred."""
_KEYS_VALUES = re.compile(r"\.[kv]_(proj|norm)$")


@probe("MPD302", modes=["FM34", "FM46", "FM63", "FM33"], severity=Severity.CRITICAL)
def check(weights: Weights, config: Mapping[str, Any], any_base: Base | None) -> Finding | str:
    """Compare the tensor names with the configuration, layer with layer, and with the base."""
    if not weights.complete:
        raise Missing("not all weight files could be read")
    names = {_QUANTISED.sub(".weight", strip_wrappers(name)) for name in weights.tensors}
    if any(name.startswith("base_model.model.") or ".base_layer." in name for name in names):
        raise Missing("the keys carry an adapter wrapper, so names cannot be compared")
    lost = dict.fromkeys(_lost_layers(names, config), "config.json")
    lost |= dict.fromkeys(_lost_stacks(names, config), "config.json")
    lost |= dict.fromkeys(_lost_in_layers(names, config), "its other layers")
    lost |= dict.fromkeys(_lost_beside(names, lost, config), "its other layers")
    lost |= dict.fromkeys(_lost_experts(names, config), "the other experts")
    lost |= dict.fromkeys(_lost_outside(names, config), "config.json")
    if any_base is not None and not any(find_wrapper(name) for name in weights.tensors):
        lost |= dict.fromkeys(_lost_from_base(names, any_base, config), "the base")
    if not lost:
        return f"nothing is missing among {len(names)} tensors"
    first = next(iter(lost))
    return Finding(
        message=f"{agree(len(lost), 'part of the model is', 'parts of the model are')}"
        f" not in its files, such as {first}; "
        "transformers fills what is missing with random values",
        evidence=tuple(
            Evidence(what="missing", tensor=name, expected=f"present, by {source}")
            for name, source in lost.items()
        ),
        cause="the save was partial, a shared tensor was removed, or config.json is another's",
        remedy="take the tensors from a complete copy of this checkpoint, or correct config.json "
        "(num_hidden_layers, tie_word_embeddings) if the model never had them",
    )


def _layers(names: set[str]) -> dict[str, dict[int, set[str]]]:
    """Return the module names of every layer, by prefix and number."""
    found: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in names:
        if match := _LAYER.match(name):
            found[match[1]][int(match[2])].add(match[3].rpartition(".")[0])
    return found


def _main_stack(names: set[str]) -> tuple[str, dict[int, set[str]]]:
    """Return the layers of the language model: the longest stack, by its prefix."""
    stacks = {p: s for p, s in _layers(names).items() if "visi" not in p and "encoder" not in p}
    if not stacks:
        return "", {}
    prefix = max(stacks, key=lambda p: (len(stacks[p]), -len(p)))
    return prefix, stacks[prefix]


def _lost_layers(names: set[str], config: Mapping[str, Any]) -> list[str]:
    prefix, stack = _main_stack(names)
    nested = config.get("text_config")
    settings = nested if isinstance(nested, dict) else config
    count = settings.get("num_hidden_layers")
    if not stack or type(count) is not int or not 0 < count <= 10_000:
        return []
    if "encoder" in str(config.get("model_type")) or config.get("is_encoder_decoder"):
        return []
    return [f"{prefix}.{number}" for number in range(count) if number not in stack]


def _lost_stacks(names: set[str], config: Mapping[str, Any]) -> list[str]:
    """Return layers that the settings of other families count; a stack may be left out whole."""
    lost = []
    for prefix, key in STACKS.get(str(config.get("model_type")), ()):
        part = re.compile(rf"(?:^|\.){re.escape(prefix)}\.(\d{{1,5}})\.")
        numbers = {int(found[1]) for name in names if (found := part.search(name))}
        count = config.get(key)
        if numbers and type(count) is int and 0 < count <= MOST_LAYERS:
            lost += [f"{prefix}.{number}" for number in range(count) if number not in numbers]
    return lost


def _lost_in_layers(names: set[str], config: Mapping[str, Any]) -> list[str]:
    prefix, stack = _main_stack(names)
    required = FAMILIES.get(str(config.get("model_type")))
    if len(stack) > MOST_LAYERS:
        raise Missing(f"{len(stack):,} layers are too many to be compared with each other")
    lost = []
    for number, modules in sorted(stack.items()):
        if required is not None:
            absent = {m for m in required if not _has(modules, m)}
        else:
            absent = _absent_beside(stack, number)
        if number >= _first_sharing(config):
            absent = {m for m in absent if not _KEYS_VALUES.search(m)}
        lost += [f"{prefix}.{number}.{module}" for module in sorted(absent)]
    return lost


def _lost_beside(names: set[str], known: Iterable[str], config: Mapping[str, Any]) -> list[str]:
    """Return tensors that one layer of a stack lacks and all others have, towers included.

    A whole module may be absent at the ends, where stacks of some models begin or stop otherwise,
    and in a layer that has something of its own instead.
    """
    stacks: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in names:
        if match := _LAYER.match(name):
            stacks[match[1]][int(match[2])].add(match[3])
    found = []
    for prefix, stack in stacks.items():
        if not 3 <= len(stack) <= MOST_LAYERS:
            continue
        counts = Counter(part for parts in stack.values() for part in parts)
        rare = {part for part, count in counts.items() if count == len(stack) - 1}
        for number, parts in stack.items() if rare else ():
            inner = min(stack) < number < max(stack) and all(counts[p] > 2 for p in parts)
            modules = {part.rpartition(".")[0] for part in parts}
            found += [
                f"{prefix}.{number}.{part}"
                for part in sorted(rare - parts)
                if (inner or part.rpartition(".")[0] in modules)
                and not any(word in part for word in _BY_LAYER)
                and not (number >= _first_sharing(config) and _KEYS_VALUES.search(part[:-7]))
            ]
    told = tuple(known)
    return [name for name in found if not name.startswith(told)]


def _lost_experts(names: set[str], config: Mapping[str, Any]) -> list[str]:
    """Return what one expert of a layer lacks and its siblings have, and experts not there.

    An expert is missing where another layer has it, and the settings count as many.
    """
    layers: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in names:
        if match := _EXPERT.match(name):
            layers[match[1]][int(match[2])].add(match[3])
    nested = config.get("text_config")
    settings = nested if isinstance(nested, dict) else config
    every = set[int]().union(*layers.values())
    is_even = any(settings.get(key) == len(every) for key in _EXPERT_COUNTS)
    lost = []
    for prefix, experts in layers.items():
        lost += [f"{prefix}{one}" for one in sorted(every - experts.keys() if is_even else ())]
        whole = set[str]().union(*experts.values())
        lost += [
            f"{prefix}{one}.{part}"
            for one, parts in sorted(experts.items())
            for part in sorted(whole - parts)
        ]
    return lost


def _first_sharing(config: Mapping[str, Any]) -> float:
    """Return the first layer that uses the keys and values of an earlier one (Gemma 3n)."""
    nested = config.get("text_config")
    settings = nested if isinstance(nested, dict) else config
    count, shared = settings.get("num_hidden_layers"), settings.get("num_kv_shared_layers")
    return count - shared if type(count) is int and type(shared) is int else math.inf


def _has(modules: set[str], wanted: str) -> bool:
    return wanted in modules or any(one.startswith(f"{wanted}.") for one in modules)


def _absent_beside(stack: Mapping[int, set[str]], number: int) -> set[str]:
    """Return what a layer lacks, if its parts are a subset of another's that no third layer has.

    Hybrid models have kinds of layers; a kind of which there is one only is suspicious when all it
    differs in is that something is not there.
    """
    mine = stack[number]
    others = [modules for other, modules in stack.items() if other != number]
    if mine in others:
        return set()
    larger = [modules - mine for modules in others if mine < modules]
    absent = min(larger, key=len) if larger else set()
    if number == min(stack):  # what comes before the first layer may be normed already
        absent = {m for m in absent if "norm" not in m}
    return {m for m in absent if not any(word in m for word in _BY_LAYER)}


def _lost_outside(names: set[str], config: Mapping[str, Any]) -> list[str]:
    """Return the embedding, final norm, projector and head that a known family needs and lacks."""
    kind = str(config.get("model_type"))
    kinds = config.get("architectures")
    if kind in PROJECTORS and any(str(one).endswith("Generation") for one in kinds or ()):
        inside = any("multi_modal_projector" in name or "connector" in name for name in names)
        sees = any("vision_tower" in name for name in names)
        return [] if inside or not sees else ["multi_modal_projector"]
    inner = ("embed_tokens", "norm") if kind in FAMILIES else OUTSIDE.get(kind, ())
    lost = [
        f"model.{part}.weight" if kind in FAMILIES else f"{part}.weight"
        for part in inner
        if not any(name.endswith(f"{part}.weight") and "layers" not in name for name in names)
    ]
    causal = isinstance(kinds, list) and any(str(kind).endswith("ForCausalLM") for kind in kinds)
    scores = isinstance(kinds, list) and any(
        str(kind).endswith("ForSequenceClassification") for kind in kinds
    )
    heads = [name for name in names if any(head in name for head in SURE_HEADS)]
    if kind == "qwen2" and names and not any(name.endswith("q_proj.bias") for name in names):
        lost.append("model.layers.0.self_attn.q_proj.bias")
    if causal and config.get("tie_word_embeddings") is False and not heads:
        lost.append("lm_head.weight")
    if (
        scores
        and kind != "perceiver"
        and not any(word in name for name in names for word in _SCORES)
    ):
        lost.append("score.weight" if kind in FAMILIES else "the head that gives classes")
    if config.get("tie_word_embeddings", kind in OUTSIDE) is True and heads:
        lost = [name for name in lost if not re.search("embed_tokens|embed_in|wte|word_emb", name)]
    return lost


def _lost_from_base(names: set[str], base: Base, config: Mapping[str, Any]) -> list[str]:
    """Return what the base holds and this model lacks, if both are the same kind of model."""
    same = ("architectures", "num_hidden_layers", "model_type", "tie_word_embeddings")
    if any(config.get(key) != base.config.get(key) for key in same):
        return []
    if config.get("quantization_config") or len(names & base.tensors.keys()) * 2 < len(names):
        return []
    modules = {name.rpartition(".")[0] for name in names}
    return [name for name in sorted(base.tensors) if name.rpartition(".")[0] not in modules]
