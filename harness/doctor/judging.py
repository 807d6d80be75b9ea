"""All that a visit of the doctor can be asked beside its path, and what it counts as."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.doctor.acceptance import Acceptance
from harness.doctor.baseline import Baseline
from harness.evidence.source import TIME_LIMIT_S, Depth
from harness.findings import ProbeResult, Severity


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What was seen beside the files, such as a server, before anything is concluded."""

    results: Sequence[ProbeResult]
    """The endings of its probes."""
    subject: Mapping[str, Any]
    """What it is, for the facts of the diagnosis."""
    unread: Mapping[str, str] = field(default_factory=dict)
    """Why it could not be examined, by the name of the subject; empty where it could."""


@dataclass(frozen=True, kw_only=True)
class Judging:
    """Everything that a visit can be asked; by default as much as goes without loading a model."""

    base: str | Path | None = None
    """The model it was made from; otherwise taken from the checkpoint where it names a local
    folder."""
    adapter: str | Path | None = None
    """The adapter that a merged model was made with; otherwise found beside it."""
    named_in: Mapping[str, str] = field(default_factory=dict)
    """The file that named `base` or `adapter`, where it was not the caller."""
    against: str | Path | None = None
    """An earlier stage, a model or an adapter folder, whose answers are the control in place of
    the base's."""
    generate: bool = False
    """Load the models and ask them (slow; the only part that starts torch)."""
    quiz: str | Path | None = None
    """Questions with answers (JSONL) for the accuracy probe."""
    voice: str | Path | None = None
    """Voice profile (YAML) for the voice probe."""
    embeddings: str | Path | None = None
    """Folder of a sentence-transformers model, by which answers of the quiz are compared as
    well, and those to a voice with its examples."""
    time_limit_s: float = TIME_LIMIT_S
    """Time for loading and asking a checkpoint and its base."""
    in_process: bool = False
    """Load models in this process and not in a child; quicker where torch is loaded already, but a
    model that hangs or crashes takes this process with it."""
    quick: bool = False
    """Read a sample of every large tensor, not all of it."""
    select: Sequence[str] = ()
    """Probes to run: codes, beginnings of codes, names or failure modes; all by default."""
    ignore: Sequence[str] = ()
    """Probes not to run, in the same words."""
    depth: Depth | str | None = None
    """How deep to look; by default as deep as goes without loading the models."""
    fail_on: Severity | None = Severity.MEDIUM
    """The least severity that fails by the exit code; None for none."""
    accepted: Sequence[Acceptance] = ()
    """Findings that do not count."""
    baseline: Baseline | None = None
    """An earlier diagnosis; its findings do not count either."""
    progress: Callable[[str], None] = field(default=lambda text: None)
    """Called with one line before something slow."""
    scanned: Callable[[int, int], None] = field(default=lambda done, total: None)
    """Called while weights are read, from any thread, with the bytes read so far and the bytes of
    this pass."""
    run_folder: str | Path | None = None
    """Folder of a matrix run, whose `behaviour.json` is read in place of generating."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """Evidence that is already at hand, for the first subject alone: a run is judged once."""
    beside: Callable[[], Examined] | None = None
    """Examines something else after the files, to be judged together with them."""


USUAL = Judging()
"""A visit of which nothing special is asked."""
