"""What must be there before the first cell starts: the embedded model, and a plant by that name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable

from harness.environment import PROJECT
from harness.matrix import Cell
from harness.mutants import MUTANTS
from mudpuppy.errors import EngineError, UsageError, near_names
from mudpuppy.tiny.cache import MAKING, cache_folder, is_complete

EMBEDDED_MODEL = "tiny"
BUILD_COMMAND = (sys.executable, "-m", "mudpuppy", "tiny", "build")


def prepare_model(cells: Iterable[Cell], say: Callable[[str], None]) -> None:
    """Make the embedded model if a cell needs it and it is not there yet.

    It is made in a child process: the runner itself never imports torch.

    Raises:
        EngineError: it could not be made; the child's last words are in the message.
    """
    if all(cell.config.get("model") != EMBEDDED_MODEL for cell in cells):
        return
    if is_complete(cache_folder()):
        return
    say(MAKING)
    done = subprocess.run(
        BUILD_COMMAND, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-20:])
        raise EngineError(
            f"the embedded model could not be made: exit code {done.returncode}\n{tail}",
            hint="run: mud-puppy tiny build",
        )


def check_plant(name: str | None) -> None:
    """Refuse the name of a planted bug that does not exist, before anything runs.

    Raises:
        UsageError: there is no such plant; the message names the near ones.
    """
    if name is not None and name not in MUTANTS:
        raise UsageError(
            f"no planted bug is called '{name}'{near_names(name, MUTANTS)}",
            hint=f"known: {', '.join(sorted(MUTANTS))}",
        )
