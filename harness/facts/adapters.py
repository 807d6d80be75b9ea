"""Facts about adapters: how each method starts, which part of a model a module is, how strong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

MUTED_BY_ZERO = re.compile(
    r"^(?P<module>.+?)\.(?:lora_E|hada_w[12]_[ab]|lokr_w[12](?:_[ab])?|vera_lambda_[bd]|"
    r"pvera_lambda_[bd]|randlora_(?:lambda|gamma)|delora_[AB]|hira_[AB]|hira_embedding_[AB]|"
    r"fourierft_spectrum|waveft_spectrum|shira_weight|miss_block|adaption_gate|lily_B|"
    r"gralora_[AB]|peanut_[AB]|poly_lora_[AB]|beft_bias|frod_lambda_s_values|tinylora_v\.\d+)"
    r"(?:\.weight)?$"
)
"""Tensors of methods other than LoRA of which one that is all zero makes its module do nothing.

Each of these methods starts with such a zero, as lora_B is one (PEFT 0.21, `tuners/*/layer.py`)."""
NEUTRAL = {"oft_R": 0.0, "oft_embedding_R": 0.0, "boft_R": 0.0, "boft_s": 1.0, "ia3_l": 1.0}
NEUTRAL |= {"road_theta": 0.0, "road_alpha": 1.0}
NEUTRAL |= {"psoft_R": 0.0, "psoft_R.vector_a": 1.0, "psoft_R.vector_b": 1.0}
"""Tensors of methods that turn or stretch, with the value at which they do nothing: a module does
nothing when all that it has of them hold that value."""
_NEUTRAL_KEY = re.compile(
    rf"^(?P<module>.+?)\.(?P<kind>{'|'.join(map(re.escape, NEUTRAL))})(?:\.weight)?$"
)
_FACTOR = re.compile(
    r"\.(?:lora_|hada_|lokr_|vera_|pvera_|randlora_|delora_|hira_|fourierft_|waveft_|shira_|miss_|"
    r"oft_|boft_|ia3_|road_|adaption_|gralora_|lily_|c3a_|hra_|vblora_|tinylora_|psoft_|unilora_|"
    r"glora_|beft_|adamss_|frod_|osf_|deft_|peanut_|poly_|ln_tuning_|shadow_|supertuning_)"
)
"""What PEFT's methods put behind the name of a module."""
STARTS_IN_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of the values of init_lora_weights that take a part of the base away."""
SURE_HEADS = ("lm_head", "embed_out")
"""Last names that are given to nothing but the layer that gives tokens."""
HEADS = (*SURE_HEADS, "output_projection", "output_layer", "proj_out")
"""Last names of the layer that gives tokens."""
SCORES = ("score", "classifier", "qa_outputs", "v_head", "reward_head", "classification_head")
"""Last names of layers that give anything but tokens."""
EMBEDDINGS = (
    *("embed_tokens", "wte", "wpe", "word_embeddings", "tok_embeddings", "embed_in", "embeddings"),
    *("position_embeddings", "token_type_embeddings", "shared", "embedding", "embed"),
)
"""Last names of the layer that takes tokens."""

_VISION = re.compile(
    r"(?:^|\.)(?:visual|vision\w*|image_\w+|vit|multi_modal_projector|mm_projector|connector|"
    r"audio_\w+|audio|speech_\w+|merger|vpm|resampler|aligner)(?:\.|$)"
)
_MTP = re.compile(r"(?:^|\.)(?:mtp\w*|nextn\w*|next_n\w*|eagle\w*|draft\w*|medusa\w*)(?:\.|$)")
_ROUTER = re.compile(
    r"(?:^|\.)(?:router|gate|wg|shared_expert_gate)(?:\.(?:classifier|wg|layer))?$"
)
_SHARED = re.compile(r"(?:^|\.)shared_(?:experts?|mlp|transf)\w*(?:\.|$)")
_EXPERT = re.compile(r"(?:^|\.)experts?(?:\.|$)")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d{1,6})(?:\.|$)")


def starts_in_base(start: object) -> bool:
    """Whether a value of init_lora_weights takes a part of the base away, into the factors."""
    return isinstance(start, str) and start.lower().startswith(STARTS_IN_BASE)


def part_of(module: str, layers: int | None = None) -> str:
    """Return which part of a model a module is.

    Args:
        module: its path in the base model.
        layers: how many layers the language model has; layers beyond it predict further tokens.

    Returns:
        `vision`, `mtp`, `router`, `shared experts`, `experts`, `head`, `embedding` or `body`.
    """
    last = module.rpartition(".")[2]
    if _VISION.search(module):
        return "vision"
    number = _LAYER.search(module)
    if _MTP.search(module) or (layers and number and int(number[1]) >= layers):
        return "mtp"
    if _ROUTER.search(module):
        return "router"
    if _SHARED.search(module):
        return "shared experts"
    if _EXPERT.search(module):
        return "experts"
    if last in (*HEADS, *SCORES):
        return "head"
    return "embedding" if last in EMBEDDINGS else "body"


def is_factor(name: str) -> bool:
    """Whether a tensor is a factor of one of PEFT's methods, by its name."""
    return "lora_" in name or _FACTOR.search(name) is not None


def neutral_module(key: str) -> tuple[str, str] | None:
    """Return module and kind of a tensor that `NEUTRAL` lists; None for any other key."""
    found = _NEUTRAL_KEY.match(key)
    return (found["module"], found["kind"]) if found else None


@dataclass(frozen=True, kw_only=True)
class LiveNames:
    """The names that the modules of a base have in memory."""

    names: frozenset[str]
    """Every module that holds tensors."""
    certain: bool
    """Whether the family is one whose names are known: transformers renames others on loading."""


@dataclass(frozen=True, kw_only=True)
class ModuleStrength:
    """How large the change of one module is."""

    module: str
    """Module path."""
    ratio: float
    """|scale * B A| / |W|, or an estimate of it where the weight is not known."""


@dataclass(frozen=True, kw_only=True)
class Strength:
    """How large an adapter's change is beside the weights that it changes."""

    modules: tuple[ModuleStrength, ...]
    """In name order."""
    is_measured: bool
    """Whether the weights of the base were read; otherwise their usual size is taken."""

    @property
    def median(self) -> float:
        """The ratio of the module in the middle."""
        ordered = sorted(one.ratio for one in self.modules)
        return ordered[len(ordered) // 2]


@dataclass(frozen=True, kw_only=True)
class HeldBase:
    """Weights of the base that an adapter's file holds without being asked to."""

    asked: Mapping[str, bool | None]
    """Base tensors of `modules_to_save`, and whether they differ from the base (None: unknown)."""
    unasked: Mapping[str, bool | None]
    """Base tensors that no setting explains, and whether they differ from the base."""
    share: float
    """Share of the file's numbers that belong to the unasked ones."""


@dataclass(frozen=True, kw_only=True)
class NamedBase:
    """What the base model that an adapter names turns out to be."""

    name: str
    """As it is written."""
    kind: str
    """`adapter` for a folder that holds an adapter alone, `itself`, `model`, or empty when it is
    not at hand."""
    adapter_base: str = ""
    """Base that the adapter in that folder names."""
