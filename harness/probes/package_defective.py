"""An installed package has a known defect in this version.

What it does: holds the installed versions against the table in harness/known_defects.toml. Every
entry names the versions, what goes wrong, and where that is known from. Nothing is imported.

Why it is bad: pip resolves such versions without a word. Some ruin a run silently (losses summed
over accumulated batches, FM39; 4-bit kernels for the wrong wavefront, FM64), some let a weights
file run code (FM59).

Example: transformers 4.46 with gradient_accumulation_steps=8; peft 0.17 beside transformers 5.

What to do: install the release that the fix names; then run your tests.
"""

from __future__ import annotations

from harness.facts.machine import Version
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe


@probe("MPD952", modes=["FM21", "FM27", "FM39", "FM55", "FM59", "FM64"], severity=Severity.MEDIUM)
def check(installed: Version) -> Finding | str:
    """Report the worst entry, with all as evidence."""
    if not installed.defects:
        return f"{installed.package} {installed.version}: no entry in the table of known defects"
    worst = installed.defects[0]
    return Finding(
        message=f"{installed.package} {installed.version}: {worst.what}",
        evidence=tuple(
            Evidence(
                what=f"{one.name} in {one.package} {one.affected}",
                found=f"{one.what} [{', '.join(one.sources)}]",
            )
            for one in installed.defects
        ),
        cause=f"{installed.package} {worst.affected} is known for it ({worst.sources[0]})",
        remedy=worst.do,
        severity=Severity(worst.severity),
    )
