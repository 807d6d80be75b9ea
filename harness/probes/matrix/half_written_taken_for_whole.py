"""A fault left something half written that a loader, or a manifest, takes for whole.

What it does: right after the fault, before anything is mended: every folder that holds a config, an
adapter config or a manifest must hold every file and every tensor that the undisturbed run writes
there, and every checkpoint with a manifest must be what the manifest says.

Why it is bad: a folder with a config is opened by whoever comes first. Half a set of weights loads
without an error: shards of two saves, zeros at the end of a short file, no tokenizer (FM43, FM45).

Example: a run killed between `config.json` and the second weights file.

What to do: write into a folder of another name, make it durable, and rename what makes it a model
last.
"""

from __future__ import annotations

from harness.facts.faults import Fault
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe


@probe("MPD733", modes=("FM43", "FM45"), severity=Severity.CRITICAL)
def check(fault: Fault) -> Finding | str:
    """Fail when something incomplete looks complete."""
    if not fault.half_written:
        return "nothing incomplete looked complete after the fault"
    return Finding(
        message=f"{len(fault.half_written)} things looked complete after the fault and were not: "
        f"{fault.half_written[0]}",
        evidence=tuple(Evidence(what="half written", file=name) for name in fault.half_written),
        cause=f"{fault.fault} at {fault.moment}: a file that says 'complete' was there too early",
        remedy="write it last, after everything else is durable",
    )
