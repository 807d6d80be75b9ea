"""What the axes of the rule table mean as settings: (method, precision, features) -> settings.

A scenario file names `feature: packing`; this table says which settings switch it on, with values
that a run of a few steps on a tiny model really exercises. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from mudpuppy.errors import near_names
from mudpuppy.features import FEATURES, METHODS, PRECISIONS

NO_FEATURE = "none"
"""How the axis `feature` says that nothing is switched on."""
TOGETHER = "+"
"""Joins features that are on at the same time: `packing+dora`."""
PRIOR_ADAPTER = "@adapter"
"""Stands for an adapter that must exist: the worker trains one first, in a process of its own."""
MERGE_PRECISIONS = {"fp32": "bf16", "bf16": "fp32", "fp16": "fp32", "fp8": "fp32"}
"""Another type than the one the run would merge to by itself, by its precision."""
UNLEARNT_BY = {
    "fp32": "npo",
    "bf16": "gradient-ascent",
    "fp16": "npo",
    "fp8": "gradient-ascent",
}
"""How rows are forgotten, by the precision: so that both ways meet every method."""

_SETTINGS: dict[str, dict[str, Any]] = {
    "streaming": {"stream": True},
    "gradient-checkpointing": {"gradient_checkpointing": True},
    # a quarter of the samples, looked at twice in a run of four steps
    "early-stopping": {"early_stopping": 1, "eval_fraction": 0.25, "eval_steps": 2},
    "lr-scheduler": {"lr_scheduler": "cosine"},
    "merge-lora": {"merge_lora": True},
    "merge-precision": {},  # depends on the precision
    "no-evaluation": {"eval_fraction": 0.0},
    "full-weights": {"use_peft": False},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "continue-adapter": {"adapter": PRIOR_ADAPTER},
    "packing": {"packing": True},
    "tokens-per-batch": {"tokens_per_batch": 256},
    "device-map": {"device_map": "auto"},
    "zero-offload": {"zero_offload": True},
    "compile": {"compile": True},
    "checkpoints": {"save_steps": 2},
    "all-tokens": {"response_only": False},
    "no-chat-template": {"chat_template": False},
    "num-workers": {"num_workers": 1},
    "preprocess-workers": {"preprocess_workers": 2},
    "logging": {"report_to": ["tensorboard"]},
    "quant": {"quant": "int4"},
    "quant-block-size": {"quant_block_size": 32},
    "quant-search": {"quant_search": 4},
    "no-kernels": {"kernels": "off"},
    "fsdp": {"fsdp": "full_shard"},
    # with a warm-up and a freeze, so that every phase of a range is met in a run of four steps
    "static-activations": {"qat_activations": "tensor", "qat_warmup": 0.25, "qat_freeze": 0.75},
    "learned-ranges": {"qat_ranges": "learned"},
    "delayed-scaling": {"fp8_scaling": "delayed", "fp8_window": 2},
    "unlearning": {},  # depends on the precision
    "retain-kl": {"retain_kl": 1.0},
}


def settings_for(method: str, precision: str, features: Iterable[str] = ()) -> dict[str, Any]:
    """Return the settings that ask for a combination, whether the rule table accepts it or not.

    Args:
        method: one of `mudpuppy.features.METHODS`.
        precision: one of `mudpuppy.features.PRECISIONS`.
        features: names of `mudpuppy.features.FEATURES`, in any order.

    Raises:
        ValueError: a name that the rule table does not know.
    """
    wanted = set(features)
    for name, known in ((method, METHODS), (precision, PRECISIONS)):
        if name not in known:
            raise ValueError(f"'{name}' is none of: {', '.join(known)}")
    settings: dict[str, Any] = {"method": method, "precision": precision}
    # in the order of the table, so that no-evaluation has the last word over early-stopping
    for name in sorted(wanted, key=_place):
        settings |= feature_settings(name, precision)
    return settings


def feature_settings(feature: str, precision: str) -> dict[str, Any]:
    """Return the settings that switch one feature on.

    Raises:
        ValueError: the rule table does not know it; the message names the near ones.
    """
    if feature == "merge-precision":
        return {"merge_precision": MERGE_PRECISIONS[precision]}
    if feature == "unlearning":
        return {"unlearn": UNLEARNT_BY[precision]}
    _place(feature)
    return dict(_SETTINGS[feature])


@cache
def read_features(word: str) -> tuple[str, ...]:
    """Return the features that a word of the axis `feature` names, in the order of the table.

    Args:
        word: `none`, the name of a feature, or several of them joined by `+`.

    Raises:
        ValueError: a name that the rule table does not know, or one that stands twice.
    """
    if word == NO_FEATURE:
        return ()
    names = word.split(TOGETHER)
    if len(set(names)) < len(names):
        raise ValueError(f"'{word}' names a feature twice")
    return tuple(sorted(names, key=_place))


def _place(feature: str) -> int:
    """Return where a feature stands in the table, or say that it does not."""
    if feature not in _ORDER:
        raise ValueError(f"there is no feature '{feature}'{near_names(feature, FEATURES)}")
    return _ORDER[feature]


_ORDER = {name: place for place, name in enumerate(FEATURES)}
