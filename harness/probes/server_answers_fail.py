"""The server gives no usable answer to some prompts.

What it does: asks an OpenAI-compatible server all prompts, again where it is busy, and counts those
that end in an error, in no JSON, or not in time.

Why it is bad: clients see what this probe saw. A prompt that crashes the sampler is often one with
NaN logits (FM12): servers answer those with an error, or with nothing.

Example: 3 of 8 prompts end with status 500: "probability tensor contains inf, nan or element < 0".

What to do: read the server's log; run the same prompts on the files with --generate.
"""

from __future__ import annotations

from harness.facts.served import Served
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe


@probe("MPD630", modes=["FM12"], severity=Severity.HIGH)
def check(served: Served) -> Finding | str:
    """Count prompts without an answer."""
    total, failed = len(served.replies), served.failed
    if not failed:
        return f"{total} prompts were answered"
    return Finding(
        message=f"{len(failed)} of {total} prompts have no answer: {failed[0].problem}",
        evidence=tuple(
            Evidence(what="in place of an answer", found=reply.problem, expected="an answer")
            for reply in failed
        ),
        cause="a server that is overloaded or misconfigured, or logits that are NaN",
        remedy="read the server's log; run mudpuppy-doctor CHECKPOINT --generate on the files",
    )
