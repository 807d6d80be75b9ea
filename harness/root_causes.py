"""Which finding explains which: one fault shows itself in several probes, and is mended once.

The order of the table is from what lies deepest to what is only seen: a file that is cut off, the
tensors that it no longer holds, what the model then says. A consequence names the first finding of
the table that explains it on the same subject; nothing is left out of a report for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from harness.findings import ProbeResult

_SAID = ("eos-flood", "never-stops", "repetition-loop", "accuracy-collapse", "voice-collapse")
"""What is seen when a model is asked."""
_MERGES = (
    "merge-without-effect",
    "merge-applied-twice",
    "merge-wrongly-scaled",
    "merge-rounded",
    "frozen-weights-changed",
)
"""What is seen when a merge is compared with its base and its adapter."""

EXPLAINS: Mapping[str, tuple[str, ...]] = {
    "run-unfinished": (
        "weights-truncated",
        "weights-file-unreadable",
        "shard-missing",
        "index-disagrees",
        "config-missing",
        "config-file-unreadable",
        "adapter-weights-missing",
        "adapter-layers-missing",
        "missing-tensors",
    ),
    "weights-truncated": (
        "index-disagrees",
        "missing-tensors",
        "adapter-layers-missing",
        "weights-nonfinite",
        "weights-all-zero",
        "weights-constant",
        "provenance-swapped",
    ),
    "weights-file-unreadable": (
        "index-disagrees",
        "missing-tensors",
        "adapter-weights-missing",
        "adapter-layers-missing",
        "provenance-swapped",
    ),
    "shards-stale": ("index-disagrees", "shard-missing"),
    "shard-missing": ("index-disagrees", "missing-tensors", "tied-embedding-diverged"),
    "index-disagrees": ("missing-tensors",),
    "config-file-unreadable": ("config-missing", "vocabulary-mismatch", "shapes-disagree"),
    "wrapper-prefix-left": (
        "missing-tensors",
        "shapes-disagree",
        "adapter-keys-dead",
        "adapter-layers-missing",
        "adapter-config-disagrees",
    ),
    "tensors-empty": (
        "missing-tensors",
        "shapes-disagree",
        "vocabulary-mismatch",
        "adapter-config-disagrees",
        "adapter-layers-missing",
        "adapter-never-trained",
    ),
    "adapter-stacked": (
        "adapter-config-disagrees",
        "adapter-keys-dead",
        "adapter-layers-missing",
        "base-disputed",
        *_SAID,
    ),
    "adapter-beside-merged-weights": ("merge-applied-twice", "adapter-keys-dead"),
    "base-mismatch": ("weights-exploded", *_MERGES),
    "weights-nonfinite": ("half-precision-overflow", "logits-nonfinite", *_MERGES, *_SAID),
    "merge-applied-twice": ("weights-exploded", *_SAID),
    "weights-exploded": ("half-precision-overflow", "logits-nonfinite", *_SAID),
    "half-precision-overflow": ("logits-nonfinite", *_SAID),
    "weights-all-zero": _SAID,
    "weights-constant": _SAID,
    "quantisation-left-declared": ("shapes-disagree", "missing-tensors", *_SAID),
    "quantisation-undeclared": ("shapes-disagree", "missing-tensors", *_SAID),
    "missing-tensors": _SAID,
    "tied-embedding-diverged": _SAID,
    "vocabulary-mismatch": ("special-token-unknown", *_SAID),
    "end-never-taught": ("never-stops",),
    "eos-not-trained": ("never-stops", "generation-broken"),
    "chat-template-broken": _SAID,
    "logits-nonfinite": _SAID,
    "eos-flood": ("accuracy-collapse", "voice-collapse"),
    "repetition-loop": ("never-stops", "accuracy-collapse", "voice-collapse"),
    "never-stops": ("accuracy-collapse", "voice-collapse"),
}
"""Names of probes, and of those whose findings they explain."""


def link_causes(results: Sequence[ProbeResult]) -> tuple[ProbeResult, ...]:
    """Return the results, findings with the code of the finding that explains them.

    Notes explain nothing: what is worth knowing is no cause. Neither does a finding that somebody
    accepted or that was known before: what follows from it stands for itself.
    """
    causes = [
        (name, {result.subject: result.code for result in results if _may_explain(result, name)})
        for name in EXPLAINS
    ]
    return tuple(_link(result, causes) for result in results)


def _may_explain(result: ProbeResult, name: str) -> bool:
    return result.name == name and result.is_sick


def _link(result: ProbeResult, causes: Sequence[tuple[str, Mapping[str, str]]]) -> ProbeResult:
    if not result.is_open:
        return result
    for name, found in causes:
        if result.subject in found and result.name in EXPLAINS[name]:
            return replace(result, caused_by=found[result.subject])
    return result
