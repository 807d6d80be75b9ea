"""The run left something behind that does not belong there, or no manifest.

What it does: lists the output folder: `mudpuppy.json` must be there, as it is written last, and no
temporary file, staging folder or second adapter's folder may be.

Why it is bad: a folder without its manifest is a save that was cut off, and a later run may take
its pieces for a whole (FM43, FM45).

Example: the process was killed while it moved the files into place.

What to do: remove the folder and train again, or resume from the newest complete checkpoint.
"""

from __future__ import annotations

from harness.facts.checkpoint import Files
from harness.findings import Evidence, Finding, Severity
from harness.observations import Observations
from harness.registry import Missing, probe

MANIFEST = "mudpuppy.json"
BELONG = ("merged", "gptq", "int8", "runs", "wandb")
"""Beginnings of the folder names that a run makes."""


@probe("MPD711", modes=("FM43", "FM45"), severity=Severity.CRITICAL)
def check(observations: Observations, files: Files) -> Finding | str:
    """Fail when the manifest is absent or a temporary name is present."""
    if observations.ending != "trained":
        raise Missing("the run did not end by saving")
    leftovers = [name for name in files.names if name.endswith(".tmp")]
    leftovers += [f"{name}/" for name in observations.folders if not name.startswith(BELONG)]
    if MANIFEST in files.names and not leftovers:
        return "the manifest is there and nothing that does not belong there"
    missing = () if MANIFEST in files.names else (Evidence(what="manifest absent", file=MANIFEST),)
    return Finding(
        message="the save is not complete"
        if missing
        else f"{', '.join(leftovers[:3])} does not belong into the folder",
        evidence=(*missing, *(Evidence(what="left behind", file=n) for n in leftovers[:5])),
        cause="the process ended while it was saving, or a second adapter was on the model",
        remedy="remove the folder and train again",
    )
