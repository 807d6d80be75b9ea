"""How a process ended is told for every code that there is, signals without a name too."""

import signal
import subprocess

import pytest

from mudpuppy.exits import describe_exit


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("exit 7", "exit code 7"),
        (f"kill -{int(signal.SIGSEGV)} $$", "SIGSEGV"),
        (f"kill -{signal.SIGRTMIN + 3} $$", f"signal {signal.SIGRTMIN + 3}"),
    ],
)
def test_a_real_ending_is_told(command, told):
    assert describe_exit(subprocess.run(["sh", "-c", command], check=False).returncode) == told
