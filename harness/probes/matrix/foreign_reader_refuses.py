"""Someone else's code does not open the artefact.

What it does: has every artefact opened by other people's readers in a clean interpreter, and looks
at those that ended in an error or by a signal. A reader that is not installed is no refusal.

Why it is bad: the artefact works on the machine that made it and nowhere else (FM33, FM53).

Example: an adapter without `base_model_name_or_path`: PEFT cannot find what to put it on.

What to do: the error of the reader is in the cell's output; open the artefact with that reader
alone.
"""

from __future__ import annotations

from harness.facts.trials import Interop
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, probe


@probe("MPD745", modes=("FM33", "FM53"), severity=Severity.CRITICAL)
def check(interop: Interop) -> Finding | str:
    """Fail when a reader could be tried and refused."""
    refused = [one for one in interop.readings if one.ending == "refused"]
    tried = [one for one in interop.readings if one.ending != "not-run"]
    if not tried:
        raise Missing("no reader could be tried")
    if not refused:
        return f"{len(tried)} readers opened what they were given"
    return Finding(
        message="; ".join(f"{one.reader} on {one.artefact}: {one.detail}" for one in refused),
        evidence=tuple(
            Evidence(what=one.reader, file=one.artefact, found=one.detail) for one in refused
        ),
        cause="a file is missing, or says what the reader does not know",
        remedy="mudpuppy-doctor CHECKPOINT --base BASE",
    )
