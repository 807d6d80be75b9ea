"""Phases of a cell: each in a child of a leader that has imported everything and computed nothing.

So every phase starts with fresh state, and none pays for the imports. Whoever computes in the
leader breaks this: a forked child of a process that has used OpenMP may hang.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from harness.process import die_with, name_signal

THREADS_VARIABLE = "OMP_NUM_THREADS"
"""Environment variable with the number of threads that a phase may use."""


class PhaseEnded(Exception):
    """A phase did not come to its end."""

    def __init__(self, name: str, code: int) -> None:
        """Describe the ending; a negative `code` is a signal, as in `subprocess`."""
        ending = f"ended by {name_signal(-code)}" if code < 0 else f"exit code {code}"
        super().__init__(f"{name}: {ending}, see above")
        self.code = code


def run_phase(name: str, work: Callable[[], Any]) -> None:
    """Run `work` in a forked child and wait for it.

    Raises:
        PhaseEnded: it ended by a signal or an exception, which it has printed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    ask = die_with(os.getpid())
    pid = os.fork()
    if pid == 0:
        _be_phase(work, ask)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        raise PhaseEnded(name, code)


def _be_phase(work: Callable[[], Any], ask: Callable[[], None] | None) -> None:
    """Do the work and leave without what the leader has registered for its own exit."""
    code = 1
    try:
        if ask is not None:
            ask()
        gc.enable()
        _use_threads()
        work()
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it is, the leader must not go on in here
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _use_threads() -> None:
    """Give torch the share of the cores that the environment names."""
    torch: Any = sys.modules.get("torch")
    threads = os.environ.get(THREADS_VARIABLE, "")
    if torch is not None and threads.isdecimal():
        torch.set_num_threads(int(threads))
