"""Ask models in a child process: one that hangs, crashes or takes all memory is a result.

The child is `harness.evidence.behaviour.session`. It runs offline in a folder of its own, with
`-P`, so that it imports no module that lies in the checkpoint. What it is about to do it writes
line by line into a file, which is passed on while it works.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness.facts.behaviour import Answers
from harness.facts.forward import Consistency, Forward
from harness.registry import ControlFailed
from mudpuppy.exits import describe_exit

JOB, ANSWERS, LOG, PROGRESS = "job.json", "answers.json", "output.log", "progress.txt"
CONTROL = "control.safetensors"
"""What the base's forward pass left for the comparison, in the folder that is kept for it."""
PATHS = ("path", "base", "against", "adapter")
"""Folders that a job names."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
"""Environment of the child: whatever a checkpoint names, nothing is downloaded."""
LOOK_S = 0.1
"""Time between two looks at the child and its progress."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is asked of whom."""

    path: Path
    """A model folder, or an adapter folder."""
    base: Path | None
    """The control, and the base of an adapter."""
    against: Path | None = None
    """An earlier stage that is the control in place of the base."""
    adapter: Path | None = None
    """The adapter that a merged model was made with."""
    prompts: tuple[str, ...]
    """What is asked."""
    golds: tuple[str, ...] = ()
    """How each may be answered; empty for none."""
    texts: tuple[str, ...] = ()
    """Neutral texts."""
    max_new_tokens: int
    """Longest answer."""
    asks_all: bool = True
    """Whether every prompt is answered in full, or only those that a forward pass left open."""
    compares: bool = False
    """Whether the checkpoint is compared with itself and its relatives."""
    time_limit_s: float = 900.0
    """Time for all of it; answers and comparisons stop before, so that what was seen counts."""

    @property
    def control(self) -> Path | None:
        """What the checkpoint is held against: an earlier stage, or the base."""
        return self.against or self.base


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Everything that was seen of a checkpoint and its base."""

    answers: Answers | None = None
    """What the checkpoint said; absent where `why_silent` says why."""
    control: Answers | None = None
    """What its base said."""
    forward: Forward | None = None
    """The checkpoint's forward pass."""
    control_forward: Forward | None = None
    """The base's."""
    divergence: tuple[float, ...] | None = None
    """KL divergence from base to checkpoint on each neutral text, in nats per token."""
    consistency: Consistency | None = None
    """Comparisons; absent where none were wanted."""
    why_silent: str = ""
    """Why nothing could be asked, such as that there is no tokenizer."""
    why_no_control: str = ""
    """Why the base could not be asked, though it is known."""


def ask_in_child(
    job: Job,
    *,
    control: Asked | None = None,
    kept: Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Asked:
    """Return what was seen of a checkpoint and its base.

    Args:
        job: what is asked of whom; the child is killed when its time is over.
        control: what is known of the base already.
        kept: folder that keeps the base's logits between calls.
        progress: called with what the child is about to do.

    Raises:
        ControlFailed: the models could not be asked, and why.
    """
    with tempfile.TemporaryDirectory(prefix="mudpuppy-ask-") as name:
        folder = Path(name)
        write_job(folder, job, control, kept)
        exit_code = _run(folder, job, progress)
        return _read(folder, job.path.name, exit_code)


def write_job(folder: Path, job: Job, control: Asked | None, kept: Path | None) -> None:
    """Write a job into a folder for the child to read."""
    places: dict[str, Path | None] = {key: getattr(job, key) for key in PATHS} | {"kept": kept}
    wanted = asdict(job) | {key: one and str(one.resolve()) for key, one in places.items()}
    wanted["control"] = None if control is None else asdict(control)
    (folder / JOB).write_text(json.dumps(wanted), encoding="utf-8")


def read_job(folder: Path) -> tuple[Job, Asked | None, Path | None]:
    """Return what `write_job` wrote."""
    value = json.loads((folder / JOB).read_text(encoding="utf-8"))
    control, kept = value.pop("control"), value.pop("kept")
    for key in PATHS:
        value[key] = value[key] and Path(value[key])
    for key in ("prompts", "golds", "texts"):
        value[key] = tuple(value[key])
    return Job(**value), control and thaw_asked(control), kept and Path(kept)


def thaw_asked(value: dict[str, Any]) -> Asked:
    """Return what was asked from its plain JSON form.

    Raises:
        ValueError: it is of another form.
    """
    from pydantic import TypeAdapter

    return TypeAdapter(Asked).validate_python(value)


def control_job(job: Job) -> Job | None:
    """Return the job that asks only a job's control, as a key for what is known of it."""
    if job.control is None:
        return None
    return replace(
        job, path=job.control, against=None, adapter=None, compares=False, time_limit_s=0
    )


def _run(folder: Path, job: Job, progress: Callable[[str], None]) -> int:
    """Run the child to its end, and see to it that it has one, also after Ctrl-C."""
    from harness.process import signal_group  # it imports pydantic
    from mudpuppy.children import die_with

    command = [sys.executable, "-P", "-m", "harness.evidence.behaviour.session", str(folder)]
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **OFFLINE},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with(os.getpid()),
        )
    told, ends = 0, time.monotonic() + job.time_limit_s
    try:
        while process.poll() is None:
            told = _tell(folder, told, progress)
            if time.monotonic() > ends:
                limit = f"{job.time_limit_s:g} s"
                raise ControlFailed(
                    f"{job.path.name} could not be asked within {limit}; raise --time-limit"
                )
            time.sleep(LOOK_S)
        _tell(folder, told, progress)
        return process.returncode
    finally:
        if process.poll() is None:
            signal_group(process.pid, signal.SIGKILL)
            process.wait()


def _tell(folder: Path, told: int, progress: Callable[[str], None]) -> int:
    """Pass on what the child has written since; returns how many lines that makes."""
    path = folder / PROGRESS
    if not path.is_file():
        return told
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    for line in lines[told:]:
        progress(line)
    return len(lines)


def _read(folder: Path, name: str, exit_code: int) -> Asked:
    """Return what the child wrote.

    Raises:
        ControlFailed: it wrote nothing, or a problem.
    """
    if exit_code or not (folder / ANSWERS).is_file():
        lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "no output")
        raise ControlFailed(
            f"{name} could not be asked, its process ended by {describe_exit(exit_code)}: "
            f"{last[:300]}"
        )
    found: dict[str, Any] = json.loads((folder / ANSWERS).read_text(encoding="utf-8"))
    if found.get("problem"):
        raise ControlFailed(found["problem"])
    return thaw_asked(found)
