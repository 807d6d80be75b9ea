"""A matrix in which every value is the same.

What it does: looks for matrices of weights all of whose values are equal, and not zero.

Why it is bad: all outputs of the layer are alike, so it tells nothing from nothing. Training never
leaves such a matrix; a buffer that was filled with ones, or with the value that a debugger writes
into fresh memory, looks like this (FM60).

Example: `model.layers.7.mlp.up_proj.weight: all 1,048,576 values are 1`.

What to do: copy the file again and compare checksums with the source; if the source has it too, go
back to an older checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from harness.facts.adapters import is_factor
from harness.facts.checkpoint import Numbers
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe

_OTHER = re.compile(r"norm|bias|scale|zero|mask|position|lambda|A_log|dt_|absmax|g_idx|buffer")
_FLOATS = ("F64", "F32", "F16", "BF16")
LEAST = 64
"""Values of a matrix that counts; smaller ones may be constant by design."""


@probe("MPD309", modes=["FM60"], severity=Severity.CRITICAL)
def check(numbers: Mapping[str, Numbers]) -> Finding | str:
    """Look for matrices of one value."""
    judged = [one for one in numbers.values() if _is_matrix(one)]
    if not judged:
        raise NotApplicable("the folder holds no matrices of floating-point weights")
    bad = [one for one in judged if one.constant]
    if not bad:
        return f"none of {len(judged)} matrices holds one value alone"
    first = bad[0]
    return Finding(
        message=f"all {first.tensor.elements:,} values of {first.tensor.name} are "
        f"{first.constant:g}" + (f", and {len(bad) - 1} more are like it" if bad[1:] else ""),
        evidence=tuple(
            Evidence(
                what="the one value",
                file=one.tensor.file,
                tensor=one.tensor.name,
                found=one.constant,
                expected="values that differ",
            )
            for one in bad
        ),
        cause="the tensor was allocated and filled, and the weights were never copied into it",
        remedy="copy the file again and compare checksums, or go back to an older checkpoint",
    )


def _is_matrix(one: Numbers) -> bool:
    tensor = one.tensor
    return (
        tensor.dtype in _FLOATS
        and len(tensor.shape) >= 2
        and min(tensor.shape) > 1
        and tensor.elements >= LEAST
        and _OTHER.search(tensor.name) is None
        and not is_factor(tensor.name)
    )
