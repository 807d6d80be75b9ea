"""Someone else's code opens the artefact and sees something else.

What it does: has every artefact opened by other people's readers in a clean interpreter: models by
plain transformers, adapters by plain PEFT, tensors by safetensors, logs by TensorBoard, and
compares logits, ids and losses with those of the run.

Why it is bad: people serve and evaluate with those readers, not with ours: what only our own code
reads rightly is broken for everybody else, and no error says so (FM20, FM22, FM34).

Example: a merged model whose keys carry a wrapper's prefix: transformers makes the weights up.

What to do: open the artefact with the reader that is named, and compare its tensors with those in
memory.
"""

from __future__ import annotations

from harness.facts.trials import Interop, Reading
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, probe


@probe("MPD744", modes=("FM20", "FM22", "FM34"), severity=Severity.CRITICAL)
def check(interop: Interop) -> Finding | str:
    """Fail when a reader sees other numbers."""
    off = [one for one in interop.readings if one.ending == "disagrees"]
    if off:
        return Finding(
            message="; ".join(f"{one.reader} on {one.artefact}: {_words(one)}" for one in off),
            evidence=tuple(
                Evidence(
                    what=f"{one.reader}: {one.detail}",
                    file=one.artefact,
                    found=one.difference,
                    expected=None if one.tolerance is None else f"at most {one.tolerance:g}",
                )
                for one in off
            ),
            cause="keys, types or settings in the files are not what the reader expects",
            remedy="mudpuppy-doctor CHECKPOINT --base BASE",
        )
    read = [one for one in interop.readings if one.ending == "agrees"]
    if not read:
        raise Missing("no reader opened anything")
    left = [one for one in interop.readings if one.ending == "not-run"]
    rest = f"; not run: {', '.join(f'{r.reader} ({r.detail})' for r in left)}" if left else ""
    return f"{len(read)} readings agree: {', '.join(sorted({r.reader for r in read}))}{rest}"


def _words(one: Reading) -> str:
    if one.difference is None:
        return one.detail
    return f"{one.detail} are {one.difference:.2g} of the scale off, {one.tolerance:g} allowed"
