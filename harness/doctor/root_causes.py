"""Which finding explains which: one fault shows itself in several probes, and is mended once.

The order of the table is from what lies deepest to what is only seen: a file that is cut off, the
tensors that it no longer holds, what the model then says. A consequence names the first finding of
the table that explains it on the same subject; nothing is left out of a report for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from harness.findings import ProbeResult

RUN = "."
"""The subject that a trainer's whole output is."""
RECORD = "MPD9"
"""Beginning of the codes of the probes that read the record of a run."""
_SAID = (
    "one-token-for-ever",
    "eos-flood",
    "never-stops",
    "repetition-loop",
    "language-drift",
    "knowledge-forgotten",
    "accuracy-collapse",
    "topic-collapse",
    "voice-collapse",
    "forbidden-claims",
)
"""What is seen when a model is asked."""
_COMPUTED = (
    "logits-nonfinite",
    "attention-kernels-disagree",
    "cache-disagrees",
    "random-at-each-load",
)
"""What is seen of the numbers that a model computes."""
_MERGES = (
    "merge-without-effect",
    "merge-applied-twice",
    "merge-wrongly-scaled",
    "merge-rounded",
    "frozen-weights-changed",
    "merge-answers-differ",
)
"""What is seen when a merge is compared with its base and its adapter."""
_NOTHING_LEARNT = (
    "loss-never-moves",
    "adapter-never-trained",
    "adapter-too-weak",
    "checkpoint-unchanged",
    "merge-without-effect",
    "answers-like-its-base",
)
"""What is seen of a run that changed nothing."""
_HOLES = (
    "index-disagrees",
    "missing-tensors",
    "inventory-disagrees",
    "adapter-layers-missing",
    "adapter-head-missing",
    "tied-embedding-diverged",
    "provenance-swapped",
)
"""What is seen of tensors that are not where they should be."""

EXPLAINS: Mapping[str, tuple[str, ...]] = {
    # The record of the training says how it came about.
    "run-unfinished": (
        "weights-truncated",
        "weights-file-unreadable",
        "shard-missing",
        "config-missing",
        "config-file-unreadable",
        "adapter-weights-missing",
        "run-ended-early",
        *_HOLES,
    ),
    "learning-rate-zero": ("loss-zero", *_NOTHING_LEARNT),
    "labels-teach-little": ("loss-not-finite", "loss-zero", *_NOTHING_LEARNT, *_SAID),
    "loss-zero": _NOTHING_LEARNT,
    "gradient-exploded": ("loss-diverged", "loss-not-finite", "weights-nonfinite"),
    "loss-not-finite": ("loss-diverged", "weights-nonfinite"),
    "loss-diverged": ("weights-exploded", "adapter-exploded", *_SAID),
    "schedule-not-asked": ("resume-jumps",),
    "reference-is-wrong": ("loss-never-moves", "preference-degenerates"),
    "rewards-all-equal": ("loss-zero", "policy-collapsed"),
    "preference-degenerates": _SAID,
    "policy-collapsed": ("answers-hit-the-limit", *_SAID),
    # Files, then names, then tensors.
    "weights-truncated": ("weights-nonfinite", "weights-all-zero", "weights-constant", *_HOLES),
    "weights-file-unreadable": ("adapter-weights-missing", *_HOLES),
    "shards-stale": ("shard-missing", "index-disagrees"),
    "shard-missing": _HOLES,
    "index-disagrees": ("missing-tensors", "inventory-disagrees"),
    "config-file-unreadable": ("config-missing", "vocabulary-mismatch", "shapes-disagree"),
    "wrapper-prefix-left": (
        "shapes-disagree",
        "adapter-keys-dead",
        "adapter-config-disagrees",
        "answers-like-its-base",
        "random-at-each-load",
        *_HOLES,
    ),
    "tensors-empty": (
        "shapes-disagree",
        "vocabulary-mismatch",
        "adapter-config-disagrees",
        "adapter-never-trained",
        "base-mismatch",
        *_HOLES,
    ),
    "adapter-stacked": (
        "adapter-on-adapter",
        "adapter-config-disagrees",
        "adapter-keys-dead",
        "adapter-layers-missing",
        "base-disputed",
        *_SAID,
    ),
    "model-wrapped-twice": ("leftover-peft-config",),
    "adapter-beside-the-point": ("answers-like-its-base",),
    "adapter-head-missing": ("scores-constant", "random-at-each-load"),
    "adapter-holds-base-weights": ("frozen-weights-changed",),
    "adapter-beside-merged-weights": ("merge-applied-twice", "adapter-keys-dead"),
    "adapter-keys-dead": ("answers-like-its-base", "random-at-each-load"),
    "adapter-never-trained": ("merge-without-effect", "answers-like-its-base"),
    "adapter-too-weak": ("answers-like-its-base",),
    "adapter-exploded": ("logits-nonfinite", *_SAID),
    "checkpoints-grow": ("optimizer-disagrees",),
    "base-mismatch": (
        "weights-exploded",
        "matrix-unlike-its-base",
        "config-not-the-bases",
        "tokenizer-not-the-bases",
        *_MERGES,
    ),
    "quantised-parts-damaged": ("weights-nonfinite", *_COMPUTED, *_SAID),
    "quantisation-disagrees": ("shapes-disagree", *_COMPUTED, *_SAID),
    "gptq-zeros-shifted": _SAID,
    "quantised-block-size-wrong": ("quantised-parts-damaged", *_SAID),
    "weights-nonfinite": (
        "half-precision-overflow",
        "padding-changes-answers",
        "neighbours-mix",
        "scores-constant",
        *_COMPUTED,
        *_MERGES,
        *_SAID,
    ),
    "merge-applied-twice": ("weights-exploded", "merge-answers-differ", *_SAID),
    "merge-wrongly-scaled": ("merge-answers-differ", *_SAID),
    "merge-rounded": ("merge-answers-differ",),
    "merge-without-effect": ("answers-like-its-base", "merge-answers-differ"),
    "merge-experts-wrong": ("merge-wrongly-scaled", "merge-rounded", "merge-answers-differ"),
    "quantised-far-from-base": _SAID,
    "layer-off-its-siblings": ("half-precision-overflow", "logits-nonfinite", *_SAID),
    "merge-carries-another": ("merge-wrongly-scaled", "merge-answers-differ"),
    "weights-exploded": ("half-precision-overflow", *_COMPUTED, *_SAID),
    "half-precision-overflow": (*_COMPUTED, *_SAID),
    "weights-all-zero": ("scores-constant", *_SAID),
    "weights-constant": _SAID,
    "quantisation-left-declared": ("shapes-disagree", "missing-tensors", *_SAID),
    "quantisation-undeclared": ("shapes-disagree", "missing-tensors", *_SAID),
    "inventory-disagrees": ("missing-tensors", "random-at-each-load", *_SAID),
    "missing-tensors": ("random-at-each-load", *_SAID),
    "tied-embedding-diverged": _SAID,
    "config-not-the-bases": ("rope-disagrees", "shapes-disagree", *_SAID),
    "rope-disagrees": _SAID,
    "architecture-disagrees": ("shapes-disagree", "inventory-disagrees", "missing-tensors"),
    "gguf-tensors-missing": _SAID,
    "gguf-settings-disagree": _SAID,
    # Words, and where they end.
    "gguf-vocabulary-disagrees": ("gguf-end-token-wrong", *_SAID),
    "gguf-pretokenizer-unknown": _SAID,
    "gguf-end-token-wrong": ("never-stops", "stop-token-shown"),
    "tokenizer-unusable": ("vocabulary-mismatch", "special-token-unknown"),
    "tokenizer-not-the-bases": (
        "vocabulary-mismatch",
        "special-token-unknown",
        "added-tokens-clash",
        "template-tokens-split",
        "unknown-token-missing",
        *_SAID,
    ),
    "vocabulary-mismatch": ("special-token-unknown", *_SAID),
    "special-tokens-contradict": ("stop-tokens-disagree",),
    "begin-and-end-swapped": ("stop-tokens-disagree", "begin-twice", "eos-flood", "never-stops"),
    "stop-tokens-disagree": ("never-stops", "repetition-loop", "stop-token-shown"),
    "end-never-taught": ("never-stops", "repetition-loop"),
    "eos-not-trained": ("never-stops", "generation-broken"),
    "chat-template-broken": ("template-fails", "template-without-prompt", *_SAID),
    "template-lost": _SAID,
    "template-tokens-split": ("stop-token-shown", *_SAID),
    "template-fails": _SAID,
    "turn-never-ended": ("never-stops", "repetition-loop"),
    # What is seen of the model itself.
    "random-at-each-load": _SAID,
    "logits-nonfinite": (
        "attention-kernels-disagree",
        "cache-disagrees",
        "padding-changes-answers",
        "neighbours-mix",
        "server-answers-fail",
        *_SAID,
    ),
    "one-token-for-ever": _SAID[1:],
    "eos-flood": ("accuracy-collapse", "topic-collapse", "voice-collapse"),
    "repetition-loop": ("never-stops", "accuracy-collapse", "topic-collapse", "voice-collapse"),
    "never-stops": ("accuracy-collapse", "topic-collapse", "voice-collapse"),
    "knowledge-forgotten": ("accuracy-collapse", "topic-collapse"),
    "accuracy-collapse": ("topic-collapse",),
}
"""Names of probes, and of those whose findings they explain."""

SAME_FILE: Mapping[str, tuple[str, ...]] = {
    "weights-truncated": (
        "weights-nonfinite",
        "weights-all-zero",
        "weights-constant",
        "tied-embedding-diverged",
    ),
}
"""Pairs in which the cause explains only what was seen in its own files: a shard that is cut off
puts no NaN into another one."""


def link_causes(results: Sequence[ProbeResult]) -> tuple[ProbeResult, ...]:
    """Return the results, findings with the code of the finding that explains them.

    What the record of a run says explains what is found in each of its checkpoints; any other
    finding explains those on the same subject. Notes explain nothing: what is worth knowing is no
    cause. Neither does a finding that somebody accepted or that was known before: what follows
    from it stands for itself.
    """
    sick = {(result.name, result.subject): result for result in results if result.is_sick}
    return tuple(_link(result, sick) for result in results)


def _link(result: ProbeResult, sick: Mapping[tuple[str, str], ProbeResult]) -> ProbeResult:
    if not result.is_open:
        return result
    for name, explained in EXPLAINS.items():
        if result.name not in explained:
            continue
        cause = sick.get((name, result.subject)) or sick.get((name, RUN))
        if cause is None or not _reaches(cause, result):
            continue
        if cause.subject == result.subject or cause.code.startswith(RECORD):
            return replace(result, caused_by=cause.code)
    return result


def _reaches(cause: ProbeResult, result: ProbeResult) -> bool:
    """Whether what was seen lies where its cause does; what names no file lies everywhere."""
    if result.name not in SAME_FILE.get(cause.name, ()):
        return True
    return _name_files(result) <= _name_files(cause)


def _name_files(result: ProbeResult) -> set[str]:
    return {piece.file for piece in result.evidence if piece.file}
