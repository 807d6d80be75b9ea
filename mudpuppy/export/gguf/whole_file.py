"""Quantise a whole GGUF file by the program `llama-quantize`, where there is no library."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from mudpuppy.errors import EngineError

LINES_SHOWN = 8
"""Last lines of the program's output that an error repeats."""


@dataclass(frozen=True, slots=True)
class WholeFile:
    """The program, called with a file in a plain type and the name of one to be."""

    program: Path
    """Where it is."""
    threads: int
    """Of its arithmetic."""

    def __call__(self, source: Path, target: Path, quant: str) -> None:
        """Write `target`; what a failure leaves of it is removed.

        Args:
            source: a GGUF file in F32, F16 or BF16.
            target: the file to be.
            quant: a name of `--quant`.

        Raises:
            EngineError: the program failed, or wrote no GGUF file.
        """
        words = [str(self.program), str(source), str(target), quant.upper(), str(self.threads)]
        try:
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
            )
            if done.returncode or not _is_gguf(target):
                last = done.stdout.decode(errors="replace").strip().splitlines()[-LINES_SHOWN:]
                raise EngineError(
                    f"{self.program} ended with {done.returncode}\n" + "\n".join(last),
                    hint="--quant f16 or q8_0 needs no other program",
                )
        except BaseException:
            target.unlink(missing_ok=True)
            raise


def _is_gguf(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as handle:
        return handle.read(4) == b"GGUF"
