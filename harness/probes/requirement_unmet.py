"""An installed package asks for other versions than are installed.

What it does: reads what the packages for training and serving declare about each other, as `pip
check` does, and compares that with what is installed.

Why it is bad: pip replaces packages one at a time, and the last command wins. Such a pair fails on
import, or worse: runs code paths that nobody ever tested together (FM42).

Example: a server's requirements replace transformers 5 by 4.57; the next training run writes
tokenizers and rope settings of another dialect.

What to do: install both in one command, so that pip sees all wishes at once, or keep training and
serving in environments of their own.
"""

from __future__ import annotations

from harness.facts.machine import Requirements
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe


@probe("MPD953", modes=["FM42"], severity=Severity.MEDIUM)
def check(requirements: Requirements) -> Finding | str:
    """Report requirements that are not met."""
    name = f"{requirements.package} {requirements.version}"
    if not requirements.unmet:
        return f"{name} has what it asks for"
    return Finding(
        message=f"{name} asks for {requirements.unmet[0]}",
        evidence=tuple(Evidence(what=f"{name} asks for", found=one) for one in requirements.unmet),
        cause="a later pip command replaced a package",
        remedy=f'pip install {requirements.package} "{requirements.unmet[0].partition(",")[0]}"   '
        "# both in one command",
    )
