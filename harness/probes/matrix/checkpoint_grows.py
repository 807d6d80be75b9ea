"""Checkpoints of the same step grow from round to round.

What it does: compares bytes and tensors of what the same step left in the first and in every later
round: the same settings on a model of the same shape make files of the same size.

Why it is bad: something is carried along: the adapters of earlier rounds, an untied copy of the
embedding, a wider type. It is the one sign of stacking that is seen without opening a file (FM18).

Example: 87 MB after the first resumption, 110 MB after the next.

What to do: list the tensors of the first and the last checkpoint; what only the last one has is it.
"""

from __future__ import annotations

from itertools import groupby

from harness.facts.lifecycle import Lifecycle, Stage
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe

SPARE_BYTES = 1024
"""Growth that is no finding: paths in a file's header may be longer."""


@probe("MPD738", modes=("FM18",), severity=Severity.CRITICAL)
def check(lifecycle: Lifecycle) -> Finding | str:
    """Fail when a step leaves more bytes or tensors in a later round than in the first."""
    stages = sorted(lifecycle.stages, key=lambda one: one.step)
    wrong: list[Evidence] = []
    for _, group in groupby(stages, key=lambda one: one.step):
        first, *later = group
        wrong += [_describe(one, first) for one in later if _has_grown(one, first)]
    if not wrong:
        return f"{len(lifecycle.stages)} stages, and none is larger than the same one before"
    return Finding(
        message=f"{wrong[-1].what}: {wrong[-1].found}, expected {wrong[-1].expected}",
        evidence=tuple(wrong),
        cause="adapters or copies of earlier rounds are saved along",
        remedy="compare the tensors of the first and the last checkpoint by name",
    )


def _has_grown(stage: Stage, first: Stage) -> bool:
    return stage.bytes > first.bytes + SPARE_BYTES or stage.tensors > first.tensors


def _describe(stage: Stage, first: Stage) -> Evidence:
    return Evidence(
        what=f"size of {stage.name}",
        found=f"{stage.bytes} bytes, {stage.tensors} tensors",
        expected=f"{first.bytes} bytes, {first.tensors} tensors as in {first.name}",
    )
