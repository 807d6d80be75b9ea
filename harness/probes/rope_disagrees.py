"""The rotary positions are not those that the weights were trained with.

What it does: reads `rope_parameters` (transformers 5) and `rope_theta` with `rope_scaling`
(transformers 4), compares the two where both are written, compares theta and scaling with the base,
and looks for values that cannot be meant: a theta that is lost, a factor below 1, fields that the
kind of scaling needs and lacks, lists that do not fit the head.

Why it is bad: nothing fails. Readers take 10,000 for a theta they do not find, every position is
turned by another angle, and quality falls with the length of the text (FM30).

Example: `rope_parameters: {rope_theta: 1000000.0}` beside `rope_theta: 10000.0`.

What to do: copy rope_theta and rope_scaling, or rope_parameters, from the base model's config.json;
with both written, make them say the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness.facts.chat import Rope, RopeFacts
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe

FILE = "config.json"
NEEDED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""Fields without which a kind of scaling cannot be computed."""
FREE = ("default", "proportional", "axial")
"""Kinds without a factor."""
LONG = 8192
"""Positions beyond which no model was trained with the theta of 10,000 that a lost one becomes."""
ROWS_OF_LLAMA_3 = 128_256
ROWS_OF_QWEN_3 = 151_936

_Found = tuple[Severity, Evidence]


@probe("MPD817", modes=["FM30"], severity=Severity.HIGH)
def check(rope: RopeFacts) -> Finding | str:
    """Hold the dialects against each other, against the base, and against what is possible."""
    found = [*_invalid(rope), *_dialects(rope), *_lost(rope), *_base(rope)]
    if not found:
        return f"theta is {rope.theta:,.0f}" if rope.theta else "rotary positions are declared"
    worst = min((severity for severity, _ in found), key=list(Severity).index)
    first = next(evidence for severity, evidence in found if severity is worst)
    return Finding(
        message=f"{first.what} is {first.found}, expected {first.expected}",
        evidence=tuple(evidence for _, evidence in found),
        cause="config.json was converted, edited, or taken from another model",
        remedy="copy rope_theta and rope_scaling, or rope_parameters, from the config.json of the "
        "base model",
        severity=worst,
    )


def _piece(what: str, found: object, expected: str) -> Evidence:
    return Evidence(what=what, file=FILE, found=str(found)[:120], expected=expected)


def _invalid(rope: RopeFacts) -> Iterator[_Found]:
    for name, one in (("rope_parameters", rope.new), ("rope_scaling", rope.old)):
        if one is None:
            continue
        if one.theta is not None and one.theta <= 1:
            yield Severity.HIGH, _piece("rope_theta", one.theta, "a number above 1")
        factor: Any = one.values.get("factor")
        if factor is not None and not (type(factor) in (int, float) and factor >= 1):
            yield Severity.HIGH, _piece(f"{name}.factor", repr(factor), "a number of at least 1")
        if lost := [key for key in NEEDED.get(one.kind, ()) if one.values.get(key) is None]:
            what = f"what {name} of type {one.kind} lacks"
            yield Severity.HIGH, _piece(what, ", ".join(lost), "nothing")
        yield from _inconsistent(name, one, rope)


def _inconsistent(name: str, one: Rope, rope: RopeFacts) -> Iterator[_Found]:
    low: Any = one.values.get("low_freq_factor")
    high: Any = one.values.get("high_freq_factor")
    if type(low) in (int, float) and type(high) in (int, float) and high <= low:
        yield Severity.HIGH, _piece(f"{name}.high_freq_factor", high, f"above {low}")
    original = one.values.get("original_max_position_embeddings")
    longest = rope.max_positions
    if original is not None and not (type(original) in (int, float) and original > 0):
        what = f"{name}.original_max_position_embeddings"
        yield Severity.HIGH, _piece(what, repr(original), "a positive number")
    elif one.kind == "llama3" and original is not None and longest and original > longest:
        what = f"{name}.original_max_position_embeddings"
        # Small models made from the settings of large ones have this, and are none the worse.
        yield Severity.NOTE, _piece(what, original, f"at most {longest}, max_position_embeddings")
    for key in ("short_factor", "long_factor"):
        listed = one.values.get(key)
        if isinstance(listed, list) and rope.half_rotary and len(listed) != rope.half_rotary:
            what = f"numbers in {name}.{key}"
            yield Severity.HIGH, _piece(what, len(listed), f"{rope.half_rotary}, half a head")


def _dialects(rope: RopeFacts) -> Iterator[_Found]:
    new, old = rope.new, rope.old
    if new is None or old is None:
        return
    if new.theta is not None and old.theta is not None and new.theta != old.theta:
        what = "rope_parameters.rope_theta"
        yield Severity.HIGH, _piece(what, f"{new.theta:g}", f"{old.theta:g}, as rope_theta is")
    said = "rope_scaling" if old.values or old.kind != "default" else ""
    if said and old.kind != new.kind:
        yield Severity.HIGH, _piece("rope_parameters.rope_type", new.kind, f"{old.kind}, as {said}")
    elif said:
        for key in sorted(new.values.keys() & old.values.keys()):
            if new.values[key] != old.values[key]:
                what = f"rope_parameters.{key}"
                yield Severity.HIGH, _piece(what, new.values[key], f"{old.values[key]}, as {said}")


def _lost(rope: RopeFacts) -> Iterator[_Found]:
    """Yield a theta that is not written, or 10,000, where the model cannot have been trained so."""
    known = rope.effective
    if rope.base is not None or rope.default_theta != 10_000:
        return
    written = known is not None and known.theta is not None
    rows, longest = rope.vocab_size, rope.max_positions or 0
    is_plain = known is None or known.kind == "default"
    if not written and is_plain and (longest > LONG or rows in (ROWS_OF_LLAMA_3, ROWS_OF_QWEN_3)):
        yield (
            Severity.HIGH,
            _piece("rope_theta", "not written: readers take 10,000", "that of the base model"),
        )
    elif rope.theta == 10_000 and (rope.model_type, rows) in (
        ("llama", ROWS_OF_LLAMA_3),
        ("qwen3", ROWS_OF_QWEN_3),
    ):
        yield (
            Severity.HIGH,
            _piece("rope_theta", "10000", "that of the base model, 500,000 or more"),
        )
    llama_31 = (rope.model_type, rows, longest) == ("llama", ROWS_OF_LLAMA_3, 131_072)
    if llama_31 and rope.theta == 500_000 and is_plain:
        yield Severity.HIGH, _piece("rope_type", "default", "llama3, with its factors")


def _base(rope: RopeFacts) -> Iterator[_Found]:
    base, mine = rope.base, rope.effective or Rope(theta=None, kind="default")
    if base is None:
        return
    theirs = base.effective or Rope(theta=None, kind="default")
    longer = (rope.max_positions or 0) > (base.max_positions or 0)
    if rope.theta is not None and base.theta is not None and rope.theta != base.theta:
        stretched = longer and rope.theta > base.theta
        written = "" if mine.theta is not None else " (not written)"
        yield (
            Severity.NOTE if stretched else Severity.HIGH,
            _piece("rope_theta", f"{rope.theta:g}{written}", f"{base.theta:g}, that of the base"),
        )
    near, their_near = mine.near_theta, theirs.near_theta
    if near is not None and their_near is not None and near != their_near:
        found = _piece("rope_theta of near layers", f"{near:g}", f"{their_near:g}, the base's")
        yield Severity.HIGH, found
    if rope.max_positions and base.max_positions and rope.max_positions < base.max_positions:
        found = _piece("max_position_embeddings", rope.max_positions, f"{base.max_positions}")
        yield Severity.NOTE, found
    if mine.kind != theirs.kind:
        added = theirs.kind in FREE and mine.kind not in FREE
        yield (
            Severity.NOTE if added else Severity.HIGH,
            _piece("rope_type", mine.kind, f"{theirs.kind}, that of the base"),
        )
    elif mine.kind not in FREE:
        for key in sorted(theirs.values.keys() & mine.values.keys()):
            if mine.values[key] != theirs.values[key]:
                severity = Severity.NOTE if longer else Severity.HIGH
                found = _piece(f"rope {key}", mine.values[key], f"{theirs.values[key]}, the base's")
                yield severity, found
    if rope.new and not rope.old and base.old and not base.new and rope.theta != 10_000:
        yield (
            Severity.NOTE,
            _piece("dialect", "rope_parameters alone", "rope_theta too, for readers before 5"),
        )
