"""The clean process of an agent: takes orders on standard input, says news on standard output.

    python -m harness.pools.agent SETTINGS

Started by `harness.pools.ray_pool` on every host. Orders and news are lines of JSON; what cells
print goes to their logs. It ends when its input does, and with its parent.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from harness.cell_folder import lock_folder
from harness.environment import describe_environment, is_same_code
from harness.execution import RunOptions
from harness.findings import Status
from harness.judge import judge_cell
from harness.matrix import Cell
from harness.pools.orders import decode_order, pack_files
from harness.pools.spawn import SpawnPool
from harness.pools.warm import WarmPool
from harness.prepare import prepare_model
from harness.queue import CellQueue
from harness.results import CellResult
from harness.runner import run_cells
from mudpuppy.children import die_with

IDLE_S = 0.1
"""Seconds to wait for an order when there is nothing else to do."""


def main(argv: list[str] | None = None) -> int:
    """Serve until the input ends; 1 when this host's code is not the driver's."""
    (text,) = sys.argv[1:] if argv is None else argv
    settings = json.loads(text)
    ask = die_with(os.getppid())
    if ask is not None:
        ask()
    environment = describe_environment()
    wanted = settings.get("environment") or environment
    if not is_same_code(environment, wanted):
        print(f"{settings['host']}: other code than the driver's: {_compare(environment, wanted)}")
        return 1
    environment["host"] = settings["host"]
    environment["host_id"] = settings["host_id"]
    with tempfile.TemporaryDirectory(prefix="mudpuppy-agent-") as made:
        folder = Path(settings.get("folder") or made)
        _serve(folder, settings, environment)
    return 0


def _serve(folder: Path, settings: Mapping[str, Any], environment: dict[str, Any]) -> None:
    """Run what is ordered and tell each result with the small files of its folder."""
    out = sys.stdout
    sys.stdout = sys.stderr  # only news may stand there
    queue = OrderQueue(sys.stdin)
    pool = SpawnPool() if settings.get("isolation") == "spawn" else WarmPool()
    options = RunOptions(
        judge=judge_cell,
        plant=settings.get("plant"),
        jobs=settings["jobs"],
        pool=pool,
        environment=environment,
        run_id=settings.get("run_id") or "",
    )
    with lock_folder(folder), closing(pool), closing(run_cells(queue, folder, options)) as results:
        _say(out, {"ready": True})
        for result in results:
            _say(out, _news(folder, result, queue.attempts[result.cell_id]))


def _news(folder: Path, result: CellResult, attempt: int) -> dict[str, Any]:
    """Return what the driver is told; of a cell that passed nothing is kept here."""
    cell_folder = folder / result.cell_id
    # The driver counts attempts over all hosts; the result's own count starts at this one.
    told = replace(result, attempt=attempt)
    news = {"result": told.to_json(), "attempt": attempt, "files": pack_files(cell_folder)}
    if result.status is Status.PASSED:
        shutil.rmtree(cell_folder)
    return news


class OrderQueue(CellQueue):
    """A queue that is filled from a pipe, and is never done before that ends."""

    def __init__(self, pipe: IO[str]) -> None:
        """Read orders from `pipe`, a line each."""
        super().__init__([])
        self.attempts: dict[str, int] = {}
        self._pipe = pipe
        self._unread = b""
        self._is_open = True

    def __len__(self) -> int:
        return super().__len__() + self._is_open

    def take(
        self, running: int, jobs: int, fits: Callable[[Cell], bool] = lambda cell: True
    ) -> Cell | None:
        """Return the cell to start, taking in what was ordered meanwhile."""
        self._read(0.0 if running or super().__len__() else IDLE_S)
        return super().take(running, jobs, fits)

    def _read(self, seconds: float) -> None:
        number = self._pipe.fileno()
        while self._is_open and select.select([number], [], [], seconds)[0]:
            seconds = 0.0
            received = os.read(number, 1 << 16)
            self._is_open = bool(received)
            *lines, self._unread = (self._unread + received).split(b"\n")
            for line in lines:
                self._accept(line.decode("utf-8"))

    def _accept(self, line: str) -> None:
        cell, attempt = decode_order(line)
        prepare_model([cell], lambda text: print(text, file=sys.stderr))
        self.attempts[cell.cell_id] = attempt
        self.add([cell])


def _say(out: IO[str], news: Mapping[str, Any]) -> None:
    out.write(json.dumps(news) + "\n")
    out.flush()


def _compare(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return what differs between two environments, as a phrase."""
    names = sorted(name for name in wanted if found.get(name) != wanted[name])
    return ", ".join(f"{name} is {found.get(name)}, not {wanted[name]}" for name in names)


if __name__ == "__main__":
    raise SystemExit(main())
