"""A release that the project supports says that a call of ours will end.

What it does: runs a smoke set under the oldest supported, the pinned and the newest releases of
transformers, peft and trl, and lists the deprecation warnings whose caller is a file of ours.

Why it is bad: today's warning in the newest release is the TypeError of the next one, for everybody
who installs without pins (FM42).

Example: `mudpuppy/loading.py:88: torch_dtype is deprecated, use dtype`.

What to do: call what the warning names instead, if the oldest supported release has it; raise the
floor in pyproject.toml if it does not.
"""

from __future__ import annotations

from harness.facts.trials import Versions
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, probe


@probe("MPD748", modes=("FM42",), severity=Severity.CRITICAL)
def check(versions: Versions) -> Finding | str:
    """Fail when a call of ours is deprecated in these releases."""
    if not versions.cells:
        raise Missing("no cell of the smoke set was run")
    shown = ", ".join(f"{name} {version}" for name, version in versions.releases.items())
    if not versions.deprecated:
        return f"no call of ours is deprecated in {shown}"
    first = versions.deprecated[0]
    more = len(versions.deprecated) - 1
    return Finding(
        message=f"{first.site}: {first.text}" + (f" (and {more} more)" if more else ""),
        evidence=tuple(
            Evidence(what=f"deprecated in {shown}", file=one.site, found=one.text)
            for one in versions.deprecated[:10]
        ),
        cause="a library has given up what the engine calls",
        remedy="call what the warning names instead",
    )
