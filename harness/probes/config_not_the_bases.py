"""Settings that decide what the model computes are not those of the base.

What it does: compares the settings of config.json that change the computation and leave no trace in
any shape: activation, epsilon of the norms, soft caps, multipliers, experts per token, the number
of heads, the kinds of layers.

Why it is bad: the weights load, no reader warns, and every layer computes something else than it
was trained for (FM46).

Example: `rms_norm_eps: 1e-05` over weights trained with 1e-06; `hidden_act: gelu` for `silu`.

What to do: copy config.json from the base model; keep only what training changed on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from harness.facts.checkpoint import Base
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe

FILE = "config.json"
COMPUTES = (
    "hidden_act",
    "hidden_activation",
    "activation_function",
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "norm_epsilon",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "n_head",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "query_pre_attn_scalar",
    "embedding_multiplier",
    "residual_multiplier",
    "attention_multiplier",
    "logits_scaling",
    "logit_scale",
    "num_experts_per_tok",
    "norm_topk_prob",
    "routed_scaling_factor",
    "scoring_func",
    "n_group",
    "topk_group",
    "layer_types",
    "partial_rotary_factor",
    "rotary_pct",
    "sliding_window_pattern",
    "parallel_residual",
    "use_parallel_residual",
    "alibi",
    "scale_attn_weights",
    "is_decoder",
)
"""Settings without which the same weights compute something else."""
_NESTED = ("text_config", "llm_config", "language_config")


@probe("MPD824", modes=["FM46"], severity=Severity.HIGH)
def check(config: Mapping[str, Any], base: Base) -> Finding | str:
    """Compare the settings that both configurations write."""
    mine, theirs = _language(config), _language(base.config)
    if mine.get("model_type") != theirs.get("model_type"):
        raise NotApplicable("the base is of another family, so its settings mean other things")
    both = [key for key in COMPUTES if mine.get(key) is not None and theirs.get(key) is not None]
    unlike = [key for key in both if not _is_same(mine[key], theirs[key])]
    if not unlike:
        return f"{len(both)} settings that decide the computation are those of the base"
    first = unlike[0]
    return Finding(
        message=f"{first} is {str(mine[first])[:60]}, and {str(theirs[first])[:60]} in the base: "
        "the same weights compute something else",
        evidence=tuple(
            Evidence(
                what=key, file=FILE, found=str(mine[key])[:120], expected=str(theirs[key])[:120]
            )
            for key in unlike
        ),
        cause="config.json was edited, converted, or taken from another model",
        remedy=f"copy {first} from {base.root}/{FILE}",
    )


def _language(config: Mapping[str, Any]) -> Mapping[str, Any]:
    nested = (config.get(key) for key in _NESTED)
    return next((one for one in nested if isinstance(one, dict)), config)


def _is_same(mine: Any, theirs: Any) -> bool:
    if type(mine) in (int, float) and type(theirs) in (int, float):
        return math.isclose(mine, theirs, rel_tol=1e-6)
    if isinstance(mine, list) and isinstance(theirs, list) and len(mine) != len(theirs):
        return True  # of another number of layers, which other probes count
    return bool(mine == theirs)
