"""A library warned of something that ruins a model, and the run went on.

What it does: searches the whole output of the run for upstream texts that mean a wrong model, an
ignored setting or text that was left out: the list is in harness/lethal_warnings.yaml.

Why it is bad: "Some weights were newly initialized" is one line among hundreds, and the model is
random (FM34); a missing adapter key is only a UserWarning, and the adapter is dead (FM06).

Example: `You are trying to modify a model with PEFT for a second time`, between two progress bars.

What to do: read what the line means below, and mend that before anything else.
"""

from __future__ import annotations

from typing import Any

from harness.findings import Evidence, Finding, Severity
from harness.registry import probe


@probe("MPD715", modes=("FM06", "FM17", "FM34"), severity=Severity.CRITICAL)
def check(output: Any) -> Finding | str:
    """Fail when a line of the output is on the list."""
    if not output.lethal:
        return f"{output.lines} lines of output, none on the list of lethal warnings"
    first = output.lethal[0]
    more = len(output.lethal) - 1
    return Finding(
        message=f"{first.means}: {first.line[:120]}" + (f" (and {more} more)" if more else ""),
        evidence=tuple(
            Evidence(what=one.means, file="output.log", found=one.line) for one in output.lethal[:5]
        ),
        cause="a library found something wrong and only warned of it",
        remedy="mend what the line names; it is quoted as it was printed, for a search",
    )
