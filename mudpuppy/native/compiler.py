"""The C compiler of this machine, if it has one, and the processor that it compiles for."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FLAGS = ("-std=c11", "-O3", "-fPIC", "-shared", "-ffp-contract=off")
"""Flags of every source that does not say others."""
FOR_THIS_PROCESSOR = ("-march=native", "-mcpu=native", "")
"""Flags that ask for all its instructions, in the order of trial; not every compiler knows each."""
TIME_LIMIT_S = 120
"""Time that the compiler has; it takes one second."""
CPU_KEYS = (
    *("vendor_id", "cpu family", "model", "model name", "stepping", "flags"),
    *("CPU implementer", "CPU variant", "CPU part", "Features"),
)
"""Lines of /proc/cpuinfo that tell a kind of processor, on x86 and on ARM."""


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """A C compiler of this machine."""

    command: tuple[str, ...]
    """What is called, such as `cc`, or what CC says."""
    version: str
    """First line of what it says of itself."""


class KernelUnavailable(Exception):
    """There is no compiled kernel here; the text says why, as part of a sentence."""


def find_compiler() -> Compiler:
    """Return the C compiler that CC names, or the first of cc, gcc and clang.

    Raises:
        KernelUnavailable: there is none that answers.
    """
    named = os.environ.get("CC", "").strip()
    try:
        wanted = [shlex.split(named)] if named else [["cc"], ["gcc"], ["clang"]]
    except ValueError as error:
        raise KernelUnavailable(f"CC={named} is no command: {error}") from None
    for command in wanted:
        if shutil.which(command[0]):
            return Compiler(command=tuple(command), version=_version(command))
    raise KernelUnavailable(f"no C compiler ({'CC=' + named if named else 'cc, gcc, clang'})")


def _version(command: list[str]) -> str:
    try:
        done = subprocess.run(
            [*command, "--version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelUnavailable(f"{command[0]} does not answer: {error}") from None
    line = (done.stdout or done.stderr).strip().partition("\n")[0]
    if done.returncode or not line:
        raise KernelUnavailable(f"{command[0]} --version ended with {done.returncode}")
    return line


def processor() -> str:
    """Return a text that two processors share only where they have the same instructions."""
    found = [platform.system(), platform.machine(), platform.processor()]
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        return "\n".join(found)
    pairs = (line.partition(":") for line in first.splitlines())
    return "\n".join(
        [*found, *(value.strip() for key, _, value in pairs if key.strip() in CPU_KEYS)]
    )


def compile_source(compiler: Compiler, source: Path, flags: Sequence[str], target: Path) -> str:
    """Compile a source into a shared library, and return the flag that named the processor.

    Raises:
        KernelUnavailable: the compiler cannot do it; holds the first line that it said.
    """
    said = ""
    for flag in FOR_THIS_PROCESSOR:
        extra = (flag,) if flag else ()
        command = [*compiler.command, *flags, *extra, str(source), "-o", str(target)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise KernelUnavailable(f"{compiler.command[0]} failed: {error}") from None
        if done.returncode == 0 and target.is_file():
            return flag
        said = done.stderr.strip().partition("\n")[0] or f"exit code {done.returncode}"
    raise KernelUnavailable(f"{compiler.command[0]} cannot compile {source.name}: {said}")
