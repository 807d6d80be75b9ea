"""The run left temporary files behind, or no manifest.

What it does:
    Lists the output folder: `mudpuppy.json` must be there, as it is written last, and no staging
    folder or temporary file may be.

Why it is bad:
    A folder without its manifest is a save that was cut off, and a later run may take its pieces
    for a whole (FM43, FM45).

Example:
    The process was killed while it moved the files into place.

What to do:
    Remove the folder and train again, or resume from the newest complete checkpoint.
"""

from __future__ import annotations

from harness.facts import Files
from harness.findings import Evidence, Finding
from harness.observations import Observations
from harness.registry import Missing, probe

MANIFEST = "mudpuppy.json"


@probe("MPD711", modes=("FM43", "FM45"))
def check(observations: Observations, files: Files) -> Finding | str:
    """Fail when the manifest is absent or a temporary name is present."""
    if observations.ending != "trained":
        raise Missing("the run did not end by saving")
    leftovers = [n for n in files.names if n.endswith(".tmp") or n.startswith(".saving")]
    if MANIFEST in files.names and not leftovers:
        return "the manifest is there and no temporary file is"
    missing = () if MANIFEST in files.names else (Evidence(what="manifest absent", file=MANIFEST),)
    return Finding(
        message="the save is not complete"
        if missing
        else f"{len(leftovers)} temporary files were left behind",
        evidence=(*missing, *(Evidence(what="temporary file", file=n) for n in leftovers[:5])),
        cause="the process ended while it was saving",
        remedy="remove the folder and train again",
    )
