"""Workers forked from a process that has imported everything and computed nothing.

A fork costs a fiftieth of the imports. Two zygotes (`harness.zygote`) are kept: one with the whole
engine, and a light one without torch for cells that must be refused before torch. Each is started
when it is first needed, and anew when the source or the surroundings have changed.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from harness.environment import sign_sources
from harness.pools.base import THREAD_VARIABLES, Job, Pool, Running
from harness.pools.spawn import POLL_S, SpawnPool
from harness.process import GRACE_S, MARK, Worker, kill_marked, signal_group
from harness.results import WorkerExit
from harness.zygote import MARK_ROOM
from mudpuppy.children import die_with
from mudpuppy.errors import MudpuppyError
from mudpuppy.exits import name_signal

READY_S = 300.0
"""Seconds that the imports of a zygote may take."""
END_S = 10.0
"""Seconds that a killed process may take to end before it is called lost."""
TAIL_BYTES = 8192
PRIVATE = frozenset(
    {
        *THREAD_VARIABLES,
        *("TMPDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "MASTER_PORT"),
        *("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
        *("PYTEST_CURRENT_TEST", MARK),
    }
)
"""Variables that no import reads, so that jobs which differ in them share a zygote."""


MAX_STILLBORN = 3
"""Zygotes in a row that may be killed before they are ready."""


ISOLATIONS = ("warm", "spawn")
"""How a cell is kept from others: a fork of a warm process, or a clean interpreter."""


class PoolError(MudpuppyError):
    """Workers cannot be forked from a warm process."""


@dataclass(frozen=True)
class Recipe:
    """What a zygote does: functions as `module:function`."""

    preload: str
    """Called once; imports."""
    entry: str = "harness.worker:main"
    """Called in every fork with the folder of the job."""


RECIPES: Mapping[str, Recipe] = {
    "light": Recipe("harness.worker:import_light"),
    "engine": Recipe("harness.worker:import_engine"),
}
"""The zygotes by what a job may have preloaded."""


class WarmPool:
    """Forks a worker for each job; jobs that want a clean interpreter get one."""

    def __init__(
        self,
        recipes: Mapping[str, Recipe] | None = None,
        *,
        spawn: SpawnPool | None = None,
        sign: Callable[[], str] = sign_sources,
    ) -> None:
        """Prepare, and start nothing yet.

        Args:
            recipes: what is preloaded, by the names that jobs use.
            spawn: starts the jobs that want a clean interpreter.
            sign: tells the state of the source; another answer, and zygotes are started anew.
        """
        self._recipes = RECIPES if recipes is None else recipes
        self._spawn = spawn or SpawnPool()
        self._sign = sign
        self._zygotes: dict[str, Zygote] = {}
        self._retired: list[Zygote] = []
        self._spawned: list[Worker] = []
        self._stillborn = 0

    def start(self, job: Job) -> Running:
        """Start a worker.

        Raises:
            OSError: it cannot be started.
            PoolError: there is no zygote that could fork it.
        """
        if job.preload == "none":
            worker = self._spawn.start(job)
            self._spawned.append(worker)
            return worker
        job.log.write_bytes(b"")
        return self._find_zygote(job).start(job)

    def wait(self, seconds: float) -> None:
        """Sleep until a worker may have ended, at most this long."""
        zygotes = [*self._zygotes.values(), *self._retired]
        channels = {one.channel: one for one in zygotes if not one.ended}
        self._spawned = [one for one in self._spawned if one.process.returncode is None]
        if self._spawned:
            seconds = min(seconds, POLL_S)
        if channels:
            for channel in select.select(channels, [], [], seconds)[0]:
                # Also one without jobs: unheard, a dead one would stay readable for ever.
                with suppress(PoolError):  # the workers that wait for it raise it
                    channels[channel].listen()
        else:
            time.sleep(seconds)

    def close(self) -> None:
        """End the zygotes and whatever still runs in them."""
        for zygote in (*self._zygotes.values(), *self._retired):
            zygote.close()
        self._zygotes.clear()
        self._retired.clear()
        self._spawn.close()

    def zygote_pids(self) -> tuple[int, ...]:
        """Return the processes that fork, or are about to."""
        return tuple(one.process.pid for one in self._zygotes.values() if not one.ended)

    def _find_zygote(self, job: Job) -> Zygote:
        """Return the zygote for a job; a stale or a dead one is replaced first."""
        shared = {name: text for name, text in job.environment.items() if name not in PRIVATE}
        key = (self._sign(), tuple(sorted(shared.items())))
        zygote = self._zygotes.get(job.preload)
        if zygote is not None and (zygote.ended or zygote.key != key):
            self._stillborn = 0 if zygote.is_ready else self._stillborn + zygote.ended
            self._retired.append(self._zygotes.pop(job.preload))
            zygote = None
        if self._stillborn >= MAX_STILLBORN:
            raise PoolError(
                f"{MAX_STILLBORN} zygotes in a row were killed while they imported",
                hint="is there enough memory? --isolation spawn needs none in advance",
            )
        for old in [one for one in self._retired if not one.jobs]:
            self._retired.remove(old)
            old.close()
        if zygote is None:
            zygote = Zygote(job.preload, self._recipes[job.preload], shared, key)
            self._zygotes[job.preload] = zygote
        return zygote


def make_pool(isolation: str) -> Pool:
    """Return a new pool by its name, one of `ISOLATIONS`."""
    return WarmPool() if isolation == "warm" else SpawnPool()


class Zygote:
    """The other end of a `harness.zygote` process."""

    def __init__(
        self, level: str, recipe: Recipe, environment: Mapping[str, str], key: object
    ) -> None:
        """Start the process; it imports while the caller goes on."""
        self.level = level
        self.key = key
        self.jobs: dict[int, WarmWorker] = {}
        self.ended = False
        self.is_ready = False
        self._recipe = recipe
        self._failure = ""
        self._born_s = time.monotonic()
        self._number = 0
        self._unread = b""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - as long-lived as the process
        self.channel, far_end = socket.socketpair()
        words = [str(far_end.fileno()), recipe.preload, recipe.entry]
        with far_end:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "harness.zygote", *words],
                cwd="/",
                env=_environment_of_zygote(environment),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[far_end.fileno()],
                start_new_session=True,
                preexec_fn=die_with(os.getpid()),
            )

    def start(self, job: Job) -> WarmWorker:
        """Ask for a fork; it is made when the imports are done."""
        self._number += 1
        worker = WarmWorker(self, job)
        self.jobs[self._number] = worker
        request = {
            "job": self._number,
            "folder": str(job.folder.resolve()),
            "scratch": str(job.scratch),
            "log": str(job.log),
            "environment": dict(job.environment),
            "memory_limit": job.memory_limit,
        }
        with suppress(BrokenPipeError, ConnectionResetError):  # it ended: `listen` will notice
            self.channel.sendall(json.dumps(request).encode() + b"\n")
        return worker

    def listen(self, seconds: float = 0.0) -> None:
        """Take in what the process has said, waiting at most so long for it.

        Raises:
            PoolError: what was to be imported could not be.
        """
        while not self.ended and select.select([self.channel], [], [], seconds)[0]:
            seconds = 0.0
            try:
                received = self.channel.recv(1 << 16)
            except ConnectionResetError:
                received = b""
            if not received:
                self._end()
            *lines, self._unread = (self._unread + received).split(b"\n")
            for line in lines:
                self._hear(json.loads(line))
        if self._failure:
            raise PoolError(self._failure, hint="--isolation spawn starts a clean process a cell")

    def require_ready_in_time(self) -> None:
        """End the process if it has imported for too long.

        Raises:
            PoolError: it had to be ended.
        """
        if self.is_ready or time.monotonic() - self._born_s < READY_S:
            return
        self._failure = (
            f"the zygote was not ready after {READY_S:.0f} s in {self._recipe.preload}: "
            f"{self._read_log() or 'it has said nothing'}"
        )
        signal_group(self.process.pid, signal.SIGKILL)
        self.listen(END_S)

    def close(self) -> None:
        """End the process; its children end with it."""
        self.channel.close()
        self.ended = True
        signal_group(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._log.close()

    def _hear(self, message: dict[str, Any]) -> None:
        event = message["event"]
        if event == "ready":
            self.is_ready = True
        elif event == "failed":
            self._failure = (
                f"the zygote could not be made ready by {self._recipe.preload}:\n"
                f"{message['traceback'].rstrip()}"
            )
        elif event == "refused":
            self._failure = f"the zygote that {self._recipe.preload} loads is not fit to be forked"
            self._failure += f": {message['reason']}"
        elif event == "unforked":
            self.jobs.pop(message["job"]).lose(f"could not be forked: {message['reason']}")
        elif event == "started":
            self.jobs[message["job"]].begin(message)
        elif event == "ended":
            self.jobs.pop(message["job"]).end(message)

    def _end(self) -> None:
        """Take note that the process is gone: what ran in it is lost, and no failure of its own."""
        self.ended = True
        code = self.process.wait()
        for worker in self.jobs.values():
            worker.lose()
        self.jobs.clear()
        if not self._failure and code >= 0:
            self._failure = f"the zygote ended with exit code {code}: {self._read_log()}"

    def _read_log(self) -> str:
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - TAIL_BYTES))
        return self._log.read().decode(errors="replace").strip()


def _environment_of_zygote(shared: Mapping[str, str]) -> dict[str, str]:
    return {
        **shared,
        MARK: "-" * MARK_ROOM,
        **dict.fromkeys(THREAD_VARIABLES, "1"),  # numpy would start threads at its import
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # to ask whether there is a GPU opens none
    }


@dataclass(eq=False)
class WarmWorker:
    """A worker forked by a zygote, or to be forked when the zygote is ready."""

    zygote: Zygote
    """What forks it, and reaps it."""
    job: Job
    """What it does."""
    pid: int | None = None
    """Its process, which leads its group; none before it is forked."""
    started_s: float = field(default_factory=time.monotonic)
    """When it was forked, on the monotonic clock."""
    asked_to_end_s: float | None = None
    """When it was sent SIGTERM because its time was over."""
    _exit: WorkerExit | None = None

    def poll(self) -> WorkerExit | None:
        """Return how the worker ended, or None while it runs; enforces the time limit.

        Raises:
            PoolError: there is no zygote that could fork it.
        """
        if self._exit is None or self._exit.lost:
            self.zygote.listen()
        if self._exit is None and self.pid is None:
            self.zygote.require_ready_in_time()
        elif self._exit is None and self.pid is not None:
            self._enforce_limit(self.pid)
        return self._exit

    def kill(self) -> WorkerExit:
        """End the worker at once and wait for it."""
        end = time.monotonic() + END_S
        while self._exit is None and time.monotonic() < end:
            if self.pid is not None:
                signal_group(self.pid, signal.SIGKILL)
            elif len(self.zygote.jobs) == 1:  # still importing, and for nobody else
                signal_group(self.zygote.process.pid, signal.SIGKILL)
            with suppress(PoolError):
                self.zygote.listen(POLL_S)
        if self._exit is None:
            self.lose()
        assert self._exit is not None
        return self._exit

    def begin(self, message: Mapping[str, Any]) -> None:
        """Note that it was forked, and when."""
        self.pid = message["pid"]
        self.started_s = message["at_s"]

    def end(self, message: Mapping[str, Any]) -> None:
        """Note how it ended, and end what it left behind."""
        code = os.waitstatus_to_exitcode(message["status"])
        self._exit = WorkerExit(
            exit_code=code if code >= 0 else None,
            signal=name_signal(-code) if code < 0 else None,
            timed_out=self.asked_to_end_s is not None,
            wall_s=round(message["at_s"] - self.started_s, 3),
            peak_rss_bytes=message["peak_bytes"],
            cpu_s=message["cpu_s"],
            added_rss_bytes=message["added_bytes"],
            killed_leftovers=kill_marked(self.job.folder, group=self.pid),
            preload=self.zygote.level,
        )

    def lose(self, reason: str = "") -> None:
        """Note that it never was, or ended with its zygote, or that nobody knows whether it did."""
        self._exit = WorkerExit(
            exit_code=None,
            wall_s=round(time.monotonic() - self.started_s, 3),
            peak_rss_bytes=0,
            killed_leftovers=kill_marked(self.job.folder, group=self.pid),
            preload=self.zygote.level,
            lost=True,
            lost_because=reason,
        )

    def _enforce_limit(self, pid: int) -> None:
        now = time.monotonic()
        if self.asked_to_end_s is None and now - self.started_s > self.job.timeout_s:
            self.asked_to_end_s = now
            signal_group(pid, signal.SIGTERM)
        elif self.asked_to_end_s is not None and now - self.asked_to_end_s > GRACE_S:
            signal_group(pid, signal.SIGKILL)
