"""The record of the run says something else than was seen.

What it does: compares `run.json` with what was counted while the run went on: steps, first and last
loss, trained tensors, samples, tokens and labels of the dataset, the settings, the chat template.

Why it is bad: what a checkpoint was made from is believed for years, by people and by the doctor. A
record that is filled in from intentions makes every later diagnosis wrong.

Example: the record says that 100 % of the samples end in EOS, and the collator has masked every
one.

What to do: record what was counted, at the place where it happened.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from harness.findings import Evidence, Finding, Severity
from harness.observations import Observations
from harness.registry import Missing, probe

SAME = 1e-6
"""Relative difference of a number that went through JSON."""
FREE = frozenset({"output", "model", "dataset", "adapter", "max_length", "resume"})
"""Settings that are recorded in another spelling, or as they turned out."""


@probe("MPD752", modes=("FM35", "FM66"), severity=Severity.CRITICAL)
def check(observations: Observations, expectation: Mapping[str, Any]) -> Finding | str:
    """Fail when the record is not what was seen."""
    if observations.ending != "trained" or not observations.recorded:
        raise Missing("the run did not end by itself, or left no record")
    wrong = [
        *_compare_steps(observations),
        *_compare_labels(observations),
        *_compare_settings(observations.recorded, expectation.get("config") or {}),
        *_compare_template(observations),
    ]
    if not wrong:
        return "the record says what was seen"
    return Finding(
        message=f"the record says {wrong[0].what} {wrong[0].found}, and it was {wrong[0].expected}"
        + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""),
        evidence=tuple(wrong),
        cause="the record is made of intentions, or of another run",
        remedy="record what was counted, at the place where it happened",
    )


def _differ(what: str, found: Any, expected: Any) -> Iterator[Evidence]:
    is_number = isinstance(found, float) and isinstance(expected, float)
    if is_number and math.isclose(found, expected, rel_tol=SAME, abs_tol=1e-9):
        return
    if found != expected:
        yield Evidence(what=what, file="mudpuppy.json", found=found, expected=expected)


def _compare_steps(seen: Observations) -> Iterator[Evidence]:
    run = seen.recorded.get("run") or {}
    if not seen.losses:
        return
    yield from _differ("optimizer steps", run.get("steps"), len(seen.losses))
    yield from _differ("first loss", run.get("first_loss"), seen.losses[0])
    yield from _differ("final loss", run.get("final_loss"), seen.losses[-1])
    if seen.motion is not None:
        trained = (seen.recorded.get("trainable") or {}).get("count")
        asked = seen.motion.trainable + seen.motion.unread
        yield from _differ("trained tensors", trained, asked)


def _compare_labels(seen: Observations) -> Iterator[Evidence]:
    said, held = seen.recorded.get("labels"), seen.dataset
    if not said or held is None:
        return
    for name in ("samples", "tokens", "trained_tokens", "samples_ending_in_eos"):
        yield from _differ(name.replace("_", " "), said.get(name), getattr(held, name))


def _compare_settings(recorded: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[Evidence]:
    said = recorded.get("config") or {}
    for name, asked in config.items():
        if name not in FREE:
            yield from _differ(f"the setting {name}", said.get(name), asked)


def _compare_template(seen: Observations) -> Iterator[Evidence]:
    if seen.template is None:
        return
    hashed = hashlib.sha256(seen.template.encode()).hexdigest()
    said = str(seen.recorded.get("chat_template_hash"))
    if not said or not hashed.startswith(said):
        yield from _differ("hash of the chat template", said, hashed[:16])
