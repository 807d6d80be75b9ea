"""With a cache the model says something else than without.

What it does: feeds the last tokens of prompts one by one with the key-value cache, and compares the
logits with those of the whole prompt at once.

Why it is bad: training and evaluation read whole texts, servers use the cache: quality is lost in
serving only (FM56).

Example: with the cache the logits of the last four tokens differ by 0.3 of their size.

What to do: set `use_cache` to false to confirm it; compare `sliding_window`, `layer_types` and the
rope settings with the base's; update transformers.
"""

from __future__ import annotations

from harness.facts.forward import Consistency
from harness.findings import Finding, Severity
from harness.registry import probe
from harness.weighing.parity import judge_gap


@probe("MPD614", modes=["FM56"], severity=Severity.HIGH)
def check(consistency: Consistency) -> Finding | str:
    """Compare cached steps with whole prompts."""
    return judge_gap(
        consistency,
        "cache",
        "logits with and without a cache",
        cause="cache positions, a sliding window or rope settings that do not fit the model",
        remedy="compare sliding_window, layer_types and rope settings with the base's config.json",
    )
