"""A release that the project says it supports does not work.

What it does: runs a smoke set under the oldest supported, the pinned and the newest releases of
transformers, peft and trl, each in an environment of its own, and judges every cell as the matrix
does.

Why it is bad: people install ranges and not pins: the promise is the whole range of pyproject.toml
(FM42).

Example: the floor `peft>=0.21` allows a release without the argument that the engine passes.

What to do: the folder of the failing cell lies below that of the trial, with its output. Mend the
call, or narrow the range in pyproject.toml.
"""

from __future__ import annotations

from harness.facts.trials import Versions
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, probe

FINE = ("passed", "rejected-as-expected")
"""Outcomes that are as expected."""


@probe("MPD749", modes=("FM42",), severity=Severity.CRITICAL)
def check(versions: Versions) -> Finding | str:
    """Fail when a smoke cell did not come out as expected."""
    if not versions.cells:
        raise Missing("no cell of the smoke set was run")
    shown = ", ".join(f"{name} {version}" for name, version in versions.releases.items())
    broken = [one for one in versions.cells if one.outcome not in FINE]
    if not broken:
        return f"{len(versions.cells)} cells passed with {shown}"
    more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
    return Finding(
        message=f"with {shown}: {broken[0].name} {broken[0].outcome}: {broken[0].message}{more}",
        evidence=tuple(
            Evidence(what=one.name, found=f"{one.outcome}: {one.message}", expected="passed")
            for one in broken
        ),
        cause="the releases behave otherwise than those that are pinned",
        remedy="mend the call, or narrow the range in pyproject.toml",
    )
