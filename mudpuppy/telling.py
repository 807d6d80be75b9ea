"""What a command prints while it works: one line a step, and no noise of libraries."""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from mudpuppy import team
from mudpuppy.errors import MudpuppyError, printable

if TYPE_CHECKING:
    from mudpuppy.records import StepRecord


def hush_libraries() -> None:
    """Let transformers speak of errors only: what matters is checked, and said in our words."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    # PEFT and TRL ask transformers by the old name; it is not our call.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")


def format_bytes(count: int) -> str:
    """Return a size as people write it."""
    for unit, step in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= step:
            return f"{count / step:.1f} {unit}"
    return f"{count} bytes"


def how_to_check(folder: str | Path) -> str:
    """Return what to type to have a model examined and asked, as lines to print."""
    return (
        f"check it: mudpuppy-doctor {shlex.quote(str(folder))} --generate\n"
        "  with --quiz FILE, questions and answers of yours: does it know them?"
    )


def say(text: str) -> None:
    """Print a line; a reader that went away, as `| head` does, costs the line and not the run."""
    try:
        print(printable(text), flush=True)
    except OSError:
        mute()


def print_error(error: MudpuppyError) -> None:
    """Print an error; one that all processes found is printed by the first of them."""
    if not team.is_first() and not error.is_own:
        return
    who = "mud-puppy" if team.is_first() else f"mud-puppy (process {team.rank()})"
    print(printable(f"{who}: error: {error}"), file=sys.stderr)


def mute() -> None:
    """Send what is still to be printed nowhere; Python would complain when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def report_step(record: StepRecord, num_steps: int) -> None:
    """Print one line a step: what a person watches, and what a log keeps."""
    parts = [f"step {record.step}/{num_steps}"]
    if record.loss is not None:
        parts.append(f"loss {record.loss:.4f}")
    if record.eval_loss is not None:
        parts.append(f"eval loss {record.eval_loss:.4f}")
    if record.reward is not None:
        parts.append(f"reward {record.reward:.4f}")
    if record.grad_norm is not None:
        parts.append(f"grad norm {record.grad_norm:.3f}")
    elif record.loss is not None:
        parts.append("gradient overflowed, weights not changed")
    if record.learning_rate is not None:
        parts.append(f"lr {record.learning_rate:.2e}")
    say("  ".join([*parts, f"{record.elapsed_s:.1f} s"]))
