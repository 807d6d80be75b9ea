"""A run that never finished, or a save that was cut off.

What it does: looks for what this project's engine leaves while it works (steps.jsonl, run.json,
folders `.saving-*`) without mudpuppy.json, which it writes last of all.

Why it is bad: what lies there is no result of the run. Weights may be those of an earlier run, and
a staging folder holds a save of which nobody knows how far it came (FM43, FM45).

Example: steps.jsonl ends at step 120, there is no final model, and `.saving-4711` is still there:
the process was killed while it saved.

What to do: start the run again with `--resume`, or take the newest `checkpoint-*` as it is. If the
run is still at work, wait for it.
"""

from __future__ import annotations

from harness.facts.files import Traces
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe


@probe("MPD111", modes=["FM43", "FM45"], severity=Severity.CRITICAL)
def check(traces: Traces) -> Finding | str:
    """Report traces of work without the manifest, and staging folders."""
    if traces.finished and not traces.staging:
        return "the run that wrote here finished: its manifest is there"
    evidence = [
        Evidence(what="staging folder of a save", file=name, found="left behind")
        for name in traces.staging
    ]
    if not traces.finished:
        evidence.append(Evidence(what="manifest", file="mudpuppy.json", found="absent"))
    if traces.last_step is not None:
        evidence.append(Evidence(what="last step", file="steps.jsonl", found=traces.last_step))
    return Finding(
        message=_say(traces),
        evidence=tuple(evidence),
        cause="the process was killed, ran out of memory or disk, or is still at work",
        remedy=_remedy(traces),
    )


def _say(traces: Traces) -> str:
    if traces.finished:
        return f"a save was cut off and left {traces.staging[0]} beside a finished run"
    step = f" after step {traces.last_step:,}" if traces.last_step else ""
    weights = "the weights that lie here are not known to be its result"
    rest = weights if traces.holds_weights else "there is no final model"
    return f"the run did not finish: it stopped{step} before its manifest was written; {rest}"


def _remedy(traces: Traces) -> str:
    if traces.finished:
        return f"remove {traces.staging[0]} once no run is at work in the folder"
    if traces.checkpoints:
        newest = traces.checkpoints[-1]
        return f"go on with --resume, or use {newest}, the newest checkpoint, as it is"
    return "train again; steps.jsonl shows how far it came"
