"""The checkpoint was made with a version that has a known defect.

What it does: holds the versions that a checkpoint records (mudpuppy.json, `peft_version`,
`transformers_version`, the model card) against the table in harness/known_defects.toml, as far as
an entry leaves traces in checkpoints.

Why it is bad: it need not be; it explains. A loss that was summed over accumulated batches (FM39)
or an attribute that was left on the base (FM21) is found in minutes once the release is known.

Example: `"peft_version": "0.17.1"` in adapter_config.json.

What to do: read what the entry says, and make the checkpoint again with a later release if what is
odd about it fits.
"""

from __future__ import annotations

from typing import Any

from harness.findings import Evidence, Finding, Severity
from harness.registry import probe


@probe("MPD961", modes=["FM21", "FM39"], severity=Severity.NOTE)
def check(made_with: Any) -> Finding | str:
    """Report recorded versions with an entry."""
    found = [(one, defect) for one in made_with for defect in one.defects]
    if not found:
        shown = ", ".join(f"{one.package} {one.version}" for one in made_with[:6])
        return f"no known defect of {shown} leaves traces in checkpoints"
    first, worst = found[0]
    return Finding(
        message=f"made with {first.package} {first.version}: {worst.what}",
        evidence=tuple(
            Evidence(
                what=f"version of {one.package}",
                file=one.found_in,
                found=one.version,
                expected=f"not {defect.affected} [{', '.join(defect.sources)}]",
            )
            for one, defect in found
        ),
        cause=f"{worst.name} ({worst.sources[0]})",
        remedy=worst.do,
        severity=Severity(worst.severity),
    )
