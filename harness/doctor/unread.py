"""Why parts of a checkpoint could not be read, asked or judged, so that nobody calls it healthy."""

from __future__ import annotations

from collections.abc import Sequence

from harness.evidence.files.header_only import is_header_only
from harness.evidence.source import CheckpointEvidence, Depth
from harness.facts.checkpoint import Files
from harness.facts.files import tell_unread
from harness.findings import ProbeResult
from harness.registry import Missing


def why_unknown(evidence: CheckpointEvidence, endings: Sequence[ProbeResult]) -> str:
    """Return why something that was wanted of a subject is not known; empty when all is.

    Args:
        evidence: what was gathered about it.
        endings: how its probes ended.
    """
    why = _why_unread(evidence) or _why_unasked(evidence)
    return why or _why_unjudged(evidence, endings)


def _why_unread(evidence: CheckpointEvidence) -> str:
    """Return why not all weights could be read; by the headers, unless a probe asked for values."""
    files: Files | None = evidence.glance("files")
    if files is not None and files.unlisted:
        return f"the folder holds more than {len(files.names):,} files, and the rest is not listed"
    if is_header_only(evidence.folder):
        held = files is not None and (files.weights or files.adapter)
        return "" if held else "of its files none is one whose header can be fetched"
    if not evidence.options.depth.reaches(Depth.WEIGHTS):
        return ""
    try:
        evidence.get("decodable")
    except Missing as missing:
        return str(missing)
    except Exception as failure:  # noqa: BLE001 - told by the probes that need it
        return f"{type(failure).__name__}: {failure}"
    return evidence.was_missing("numbers") or (tell_unread(files) if files else "")


def _why_unasked(evidence: CheckpointEvidence) -> str:
    """Return why models that were to be asked could not be; no answer is no sign of health."""
    if not evidence.options.generate:
        return ""
    why = evidence.was_missing("asked")
    asked = evidence.recall("asked")
    if asked is None or asked.answers is not None:  # of one without a voice, logits are compared
        why = why or evidence.was_missing("behaviour")
    return f"--generate could not ask it: {why}" if why else ""


def _why_unjudged(evidence: CheckpointEvidence, endings: Sequence[ProbeResult]) -> str:
    """Return why scores that a person asked for could not be judged."""
    options = evidence.options
    asked = evidence.recall("behaviour") if options.generate else None
    if asked is None:
        return ""
    from harness.doctor.answers_told import why_unjudged

    given = {"--quiz": options.quiz, "--voice": options.voice}
    flags = [flag for flag, file in given.items() if file is not None]
    return why_unjudged(endings, asked, flags)
