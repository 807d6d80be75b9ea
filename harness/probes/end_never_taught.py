"""The record of the training says that no answer was taught to end.

What it does: reads what mudpuppy.json counted on the samples that were trained: how many of them
have an end token as their last label.

Why it is bad: a model that never sees the end as a target never stops; answers run to the token
limit and new turns are invented (FM01, FM02). The loss looks healthy all the while.

Example: `samples: 800, samples_ending_in_eos: 0`: every answer was cut at max_length, or the
template never writes the end of the turn.

What to do: raise --max-length, or mend the template so that it ends the turn of the assistant, and
train again.
"""

from __future__ import annotations

from harness.facts.files import Manifest
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe

FILE = "mudpuppy.json"
_TEACH_ANSWERS = ("full", "lora", "qlora", "qat", "multimodal")
"""Methods whose labels are the answers themselves."""


@probe("MPD409", modes=["FM01", "FM02"], severity=Severity.CRITICAL)
def check(manifest: Manifest) -> Finding | str:
    """Report labels without a single end."""
    labels, method = manifest.value.get("labels"), manifest.value.get("method")
    if not isinstance(labels, dict) or method not in _TEACH_ANSWERS:
        raise NotApplicable("the record counts no labels of answers")
    samples, ends = labels.get("samples"), labels.get("samples_ending_in_eos")
    if type(samples) is not int or type(ends) is not int or samples <= 0:
        raise NotApplicable("the record counts no labels of answers")
    if ends > 0:
        return f"{ends} of {samples} samples taught the end of an answer"
    return Finding(
        message=f"none of {samples} training samples taught the end of an answer: the model may "
        "never stop",
        evidence=(
            Evidence(what="samples_ending_in_eos", file=FILE, found=0, expected=samples),
            Evidence(what="samples cut at max_length", file=FILE, found=labels.get("truncated")),
        ),
        cause="every answer was cut at max_length, or the template never writes the end of a turn",
        remedy="raise --max-length, or end the assistant's turn in the chat template, and train "
        "again",
    )
