"""The padding token is the end token.

What it does: compares pad_token and eos_token of the tokenizer, and reads from mudpuppy.json how
many training samples ended in an end token as their last label. Alone it is worth a note, because
many healthy models have it; a base with a padding token of its own makes it a risk, and a record in
which most samples lost their end makes it the fault.

Why it is bad: collators that mask padding by id (labels == pad_token_id become -100) mask the end
of every answer with it. The model never learns to stop: answers run to `max_new_tokens` (FM01).

Example: `tokenizer.pad_token = tokenizer.eos_token` before a training with
DataCollatorForLanguageModeling.

What to do: `tokenizer.add_special_tokens({"pad_token": "<|pad|>"})` or take a reserved token, mask
padding by position and not by id, and train again.
"""

from __future__ import annotations

from harness.facts.chat import Naming
from harness.facts.files import Manifest
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe

SHARE = 0.5
"""Share of samples with a taught end below which the end counts as masked; what was cut at
max_length is not counted against it."""


@probe("MPD807", modes=["FM01"], severity=Severity.NOTE)
def check(
    naming: Naming, base_naming: Naming | None, any_manifest: Manifest | None
) -> Finding | str:
    """Weigh a padding token that is the end token by what else is known."""
    end, pad = naming.chosen.get("eos_token"), naming.chosen.get("pad_token")
    if not end or not pad:
        raise NotApplicable("the tokenizer does not name both an end and a padding token")
    if end != pad:
        return f"padding is {pad[:40]!r}, the end is {end[:40]!r}"
    evidence = [Evidence(what="pad_token and eos_token", found=end[:60], expected="two tokens")]
    severity, why = Severity.NOTE, "harmless where padding is masked by position"
    old = base_naming.chosen.get("pad_token") if base_naming else None
    if base_naming and old and old != base_naming.chosen.get("eos_token"):
        severity, why = Severity.MEDIUM, f"the base pads with {old[:40]!r}"
        evidence.append(Evidence(what="pad_token of the base", found=old[:60]))
    if taught := _count_taught(any_manifest):
        ended, whole = taught
        evidence.append(Evidence(what="samples ending in eos", found=ended, expected=whole))
        if ended < SHARE * whole:
            severity, why = Severity.HIGH, f"only {ended} of {whole} samples taught the end"
    return Finding(
        message=f"the tokenizer pads with its end token {end[:40]!r}: {why}",
        evidence=tuple(evidence),
        cause="pad_token = eos_token, as many scripts set it",
        remedy="give the tokenizer a pad token of its own (a reserved one, or add_special_tokens) "
        "and mask padding by position, not by id",
        severity=severity,
    )


def _count_taught(manifest: Manifest | None) -> tuple[int, int] | None:
    """Return samples that taught their end, and samples that could have; None when not recorded."""
    labels = manifest.value.get("labels") if manifest is not None else None
    if not isinstance(labels, dict):
        return None
    samples, ended = labels.get("samples"), labels.get("samples_ending_in_eos")
    cut = labels.get("truncated")
    if type(samples) is not int or type(ended) is not int or samples <= 0 or ended <= 0:
        return None  # a record without a single end is another probe's finding
    whole = samples - (cut if type(cut) is int and 0 <= cut < samples else 0)
    return ended, whole
