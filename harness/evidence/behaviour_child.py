"""Ask models in a child process: one that hangs, crashes or takes all memory is a result.

The child is `harness.evidence.behaviour_models`. It runs offline in a folder of its own, with `-P`,
so that it imports no module that lies in the checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.facts.behaviour import Answers
from harness.process import die_with, signal_group
from harness.registry import ControlFailed

JOB, ANSWERS, LOG = "job.json", "answers.json", "output.log"
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
"""Environment of the child: whatever a checkpoint names, nothing is downloaded."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is asked of whom."""

    path: Path
    """A model folder, or an adapter folder."""
    base: Path | None
    """The control, and the base of an adapter."""
    prompts: tuple[str, ...]
    """What is asked."""
    max_new_tokens: int
    """Longest answer."""


def ask_in_child(
    job: Job, time_limit_s: float, *, control: Answers | None = None
) -> tuple[Answers, Answers | None]:
    """Return the answers of the checkpoint and of its base.

    Args:
        job: what is asked of whom.
        time_limit_s: time after which the child is killed.
        control: the base's answers, when they are known already.

    Raises:
        ControlFailed: the models could not be asked, and why.
    """
    with tempfile.TemporaryDirectory(prefix="mudpuppy-ask-") as name:
        folder = Path(name)
        wanted = asdict(job) | {
            "path": str(job.path.resolve()),
            "base": None if job.base is None else str(job.base.resolve()),
            "ask_base": control is None,
        }
        (folder / JOB).write_text(json.dumps(wanted), encoding="utf-8")
        exit_code = _run(folder, job.path.name, time_limit_s)
        found = _read(folder, job.path.name, exit_code)
    asked = found["control"]
    return _thaw(found["answers"]), control if asked is None else _thaw(asked)


def _run(folder: Path, name: str, time_limit_s: float) -> int:
    """Run the child to its end, and see to it that it has one, also after Ctrl-C."""
    command = [sys.executable, "-P", "-m", "harness.evidence.behaviour_models", str(folder)]
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
    try:
        return process.wait(time_limit_s)
    except subprocess.TimeoutExpired:
        raise ControlFailed(f"{name} could not be asked within {time_limit_s:g} s") from None
    finally:
        if process.poll() is None:
            signal_group(process.pid, signal.SIGKILL)
            process.wait()


def _read(folder: Path, name: str, exit_code: int) -> dict[str, Any]:
    """Return what the child wrote.

    Raises:
        ControlFailed: it wrote nothing, or a problem.
    """
    if exit_code or not (folder / ANSWERS).is_file():
        how = f"exit code {exit_code}" if exit_code >= 0 else signal.Signals(-exit_code).name
        lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "no output")
        raise ControlFailed(f"{name} could not be asked, its process ended by {how}: {last[:300]}")
    found: dict[str, Any] = json.loads((folder / ANSWERS).read_text(encoding="utf-8"))
    if found.get("problem"):
        raise ControlFailed(found["problem"])
    return found


def _thaw(value: dict[str, Any]) -> Answers:
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
    return Answers(**fields)
