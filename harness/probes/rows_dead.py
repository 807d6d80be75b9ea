"""Rows or columns of a matrix that are zero, or copies of others.

What it does: counts the rows and columns of every matrix that hold nothing but zeros, and the rows
that repeat an earlier one, and compares with the base; without one, with the same weight of the
other layers. Zeros at the end of a matrix are the finding of weights-all-zero.

Why it is bad: a part of the layer is mute (FM60), or says the same thing twice. A shard that was
gathered into the wrong place, a slice that was allocated and not filled, and a copy that was cut
look like this; header, size and shape are all right.

Example: `model.layers.7.mlp.up_proj.weight: 1,024 of 11,008 rows of zeros`, after tensor-parallel
training on eight devices of which one never wrote its part.

What to do: copy the file again and compare checksums with the source; if the source has it too,
gather the shards again or go back to an older checkpoint.
"""

from __future__ import annotations

from harness.facts.weights import DeadRows
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe


@probe("MPD310", modes=["FM60"], severity=Severity.HIGH)
def check(dead_rows: tuple[tuple[DeadRows, ...], int], sample: str) -> Finding | str:
    """Judge dead and repeated rows and columns."""
    found, judged = dead_rows
    if not found:
        where = "; of the others a sample was read" if sample else ""
        return f"no rows or columns of {judged} matrices are dead or repeated{where}"
    worst = max(found, key=lambda one: one.count / one.out_of)
    compared = ", where the base has values" if worst.base_has_values else ""
    return Finding(
        message=f"{worst.tensor.name} has {worst.count:,} {worst.what} of {worst.out_of:,}"
        f"{compared}" + (f", and {len(found) - 1} more are like it" if found[1:] else ""),
        evidence=tuple(
            Evidence(
                what=one.what if one.first is None else f"{one.what}, from row {one.first:,} on",
                file=one.tensor.file,
                tensor=one.tensor.name,
                found=one.count,
                expected="none, as in the base" if one.base_has_values else "as in other layers",
            )
            for one in sorted(found, key=lambda one: -one.count / one.out_of)
        ),
        cause="a shard was gathered into the wrong place, or a part was allocated and not filled",
        remedy="copy the file again and compare checksums, or go back to an older checkpoint",
    )
