"""Run a command that may die: an instruction that the processor lacks ends it, not its caller."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence

from mudpuppy.exits import describe_exit
from mudpuppy.native.compiler import KernelUnavailable


def run_apart(command: Sequence[str], words: str, limit_s: float) -> tuple[str, str]:
    """Run a command that may die.

    Args:
        command: what is run.
        words: its standard input.
        limit_s: seconds that it has.

    Returns:
        How it failed, empty where it did not, and what it printed.

    Raises:
        KernelUnavailable: it took too long or was killed from outside.
    """
    try:
        done = subprocess.run(
            command,
            input=words,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise KernelUnavailable(f"the self-test did not end within {limit_s:g} s") from None
    except OSError as error:
        raise KernelUnavailable(f"the self-test did not start: {error}") from None
    if done.returncode == -signal.SIGKILL:
        raise KernelUnavailable("the self-test was killed from outside")
    if done.returncode < 0:
        return f"the self-test died of {describe_exit(done.returncode)}", ""
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        return f"the self-test ended with {done.returncode}: {last}", ""
    return "", done.stdout
