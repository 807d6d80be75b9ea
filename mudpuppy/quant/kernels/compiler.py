"""Compile dequantize.c for this very processor, once, into the user's cache. No torch.

The folder is named after everything that the result depends on: source, compiler, flags and the
processor. A home folder that several machines share thus holds one build for each kind of them,
and none meets instructions that it does not have.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mudpuppy.quant.kernels.verdicts import Verdict, make_key, read_verdict, record
from mudpuppy.tiny.cache import cache_root, fill, is_complete

VARIABLE = "MUDPUPPY_KERNELS"
"""Environment variable; `0` leaves the PyTorch path alone."""
SOURCE = Path(__file__).with_name("dequantize.c")
LIBRARY = "dequantize.so"
FLAGS = ("-std=c11", "-O3", "-fPIC", "-shared", "-ffp-contract=off")
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


@dataclass(frozen=True, kw_only=True)
class Build:
    """A compiled library and what is known of it."""

    folder: Path
    """Where it lies."""
    verdict: Verdict
    """What the self-test said."""

    @property
    def library(self) -> Path:
        """The shared library."""
        return self.folder / LIBRARY


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


def build_folder(compiler: Compiler) -> Path:
    """Return where the build of this source by this compiler for this processor belongs."""
    key = make_key(*_sources(), *compiler.command, compiler.version, *FLAGS, processor())
    return cache_root() / "kernels" / f"dequantize-{key}"


def find_build(compiler: Compiler) -> Build | None:
    """Return the build that is there already; nothing is compiled."""
    folder = build_folder(compiler)
    return _open(folder) if is_complete(folder) else None


def get_build(compiler: Compiler, judge: Callable[[Path], tuple[bool, str]]) -> Build:
    """Return the build for this machine; the first call compiles it and has it judged.

    Args:
        compiler: what compiles.
        judge: the self-test of a fresh library: whether it passed, and why or why not. A verdict is
            kept with the build, also a bad one, so that it is not tried again at every start.

    Raises:
        KernelUnavailable: it cannot be compiled, or is not safe to load.
        OutputError: the cache cannot be written.
    """

    def build(folder: Path) -> None:
        flag = _compile(compiler, folder / LIBRARY)
        (folder / LIBRARY).chmod(0o755)  # some umasks let a group write, and _open refuses that
        passed, why = judge(folder / LIBRARY)
        record(folder, Verdict(passed=passed, why=why, made_by=f"{compiler.version} {flag}"))

    return _open(fill(build_folder(compiler), build))


def describe_kernel() -> str:
    """Say what will compute 4-bit layers on this processor; nothing is compiled or loaded."""
    if os.environ.get(VARIABLE) == "0":
        return f"PyTorch ({VARIABLE}=0)"
    try:
        compiler = find_compiler()
        build = find_build(compiler)
    except KernelUnavailable as error:
        return f"PyTorch ({error})"
    if build is None:
        return f"C, compiled and tested at first use ({compiler.version})"
    if not build.verdict.passed:
        return f"PyTorch (the compiled kernel was refused: {build.verdict.why}; {build.folder})"
    return f"compiled C ({build.verdict.why}; {compiler.version})"


def get_device_verdict(facts: tuple[str, ...], judge: Callable[[], tuple[bool, str]]) -> Verdict:
    """Return what the self-test of the Triton kernels said on a GPU; the first call runs it.

    Args:
        facts: what the verdict depends on, beside the sources: GPU, torch and triton.
        judge: the self-test.

    Raises:
        KernelUnavailable: the test could not be run.
        OutputError: the cache cannot be written.
    """
    key = make_key(*_sources(), *facts)

    def build(folder: Path) -> None:
        passed, why = judge()
        record(folder, Verdict(passed=passed, why=why, made_by=", ".join(facts)))

    return read_verdict(fill(cache_root() / "kernels" / f"triton-{key}", build))


def _sources() -> list[str]:
    """Return kernels and self-tests: a verdict is of both."""
    tests = sorted(Path(__file__).parent.glob("*.py"))
    return [path.read_bytes().hex() for path in (SOURCE, *tests)]


def _compile(compiler: Compiler, target: Path) -> str:
    """Compile the source and return the flag that named the processor."""
    said = ""
    for flag in FOR_THIS_PROCESSOR:
        extra = (flag,) if flag else ()
        command = [*compiler.command, *FLAGS, *extra, str(SOURCE), "-o", str(target)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise KernelUnavailable(f"{compiler.command[0]} failed: {error}") from None
        if done.returncode == 0 and target.is_file():
            return flag
        said = done.stderr.strip().partition("\n")[0] or f"exit code {done.returncode}"
    raise KernelUnavailable(f"{compiler.command[0]} cannot compile {SOURCE.name}: {said}")


def _open(folder: Path) -> Build:
    """Read the verdict of a complete build, and refuse one that others could have written."""
    for path in (folder, folder / LIBRARY):
        state = path.stat()
        if state.st_uid not in (os.geteuid(), 0) or state.st_mode & 0o022:
            raise KernelUnavailable(f"{path} belongs to others or can be written by them")
    return Build(folder=folder, verdict=read_verdict(folder))
