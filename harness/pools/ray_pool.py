"""Run cells on many hosts with Ray: one agent per host, which Ray places and starts again.

Ray places agents, never cells: an agent is an actor that holds one clean process
(`harness.pools.agent`) with a warm pool of its own, for a fork of Ray's own threaded process would
be unsafe. The driver gives out leases, hears the agents, and alone writes results.

Every host must have the project installed in the same version; one with other sources is refused.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.cell_folder import wipe_folder
from harness.environment import DECISIVE, PROJECT
from harness.execution import RunOptions
from harness.matrix import Cell
from harness.pools.leases import LEASE_S, Lease, Leases
from harness.pools.orders import encode_order, unpack_files
from harness.queue import longest_first
from harness.results import CellResult, Event, Finished, Outcome, Started, write_result
from mudpuppy.errors import ConfigError, EngineError

EXCHANGE_S = 0.5
"""Seconds that an agent waits for news before it answers."""
KNOCK_S = 10.0
"""Seconds in which a cluster must answer."""
LAST_LINES = 20
"""Lines of an agent that are kept to say why it ended."""
LOOK_S = 5.0
"""Seconds between two looks for hosts that came or went."""
HINT = "pip install 'mudpuppy[ray]'"


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """What a run on Ray needs to know."""

    address: str | None = None
    """A running cluster, such as `auto` or `ray://host:10001`; by default one on this machine."""
    jobs: int | None = None
    """Cells at a time on each host; by default one per GPU, or one per core."""
    lease_s: float = LEASE_S
    """Seconds without a word from a host after which its cells are given to others."""
    agent_command: Sequence[str] = (sys.executable, "-m", "harness.pools.agent")
    """What an agent starts on its host."""
    isolation: str = "warm"
    """How agents start workers: `warm` or `spawn`."""


def run_cells_on_ray(
    options: RayOptions,
    cells: Sequence[Cell],
    run_dir: Path,
    run: RunOptions,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Generator[CellResult, None, None]:
    """Run cells on every host of a Ray cluster and yield each result once it is written.

    With `functools.partial(run_cells_on_ray, RayOptions(...))` it is what `run_matrix` takes for
    its `dispatch`.

    Raises:
        ConfigError: Ray is not installed, or there is no such cluster.
        EngineError: an agent has other sources than the driver, or no host is left.
    """
    ray = _connect(options.address)
    try:
        settings = {
            "environment": {name: run.environment.get(name) for name in DECISIVE},
            "plant": run.plant,
            "run_id": run.run_id,
            "isolation": options.isolation,
        }
        ordered = longest_first(cells, run.plan.durations)
        yield from _Driver(ray, run_dir, options, settings, on_event).run(ordered)
    finally:
        ray.shutdown()


def _connect(address: str | None) -> Any:
    """Import Ray and join, or start, a cluster."""
    # Without it Ray hides every GPU from an actor that asks for none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise ConfigError(["--pool ray: Ray is not installed"], hint=HINT) from None
    _require_answer(address)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address,
            namespace="mudpuppy",
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=False,
            ignore_reinit_error=True,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        hint = "start one with: ray start --head, or leave out --address"
        reason = str(error).strip().splitlines()[0]
        raise ConfigError([f"--address {address}: {reason}"], hint=hint) from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own there, which ends the process
    return ray


def _require_answer(address: str | None) -> None:
    """Knock before Ray does, which knocks for minutes.

    Raises:
        ConfigError: nobody listens at the address.
    """
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=KNOCK_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            [f"--address {address}: {error}"], hint="start a cluster with: ray start --head"
        ) from None


class _Driver:
    """Gives out leases, hears agents, writes results."""

    def __init__(
        self,
        ray: Any,
        run_dir: Path,
        options: RayOptions,
        settings: Mapping[str, Any],
        on_event: Callable[[Event], None],
    ) -> None:
        self._settings = settings
        self._ray = ray
        self._run_dir = run_dir
        self._options = options
        self._on_event = on_event
        self._book = Leases(lease_s=options.lease_s)
        self._agents: dict[str, _Agent] = {}
        self._broken: dict[str, int] = {}
        self._looked_s = -LOOK_S

    def run(self, cells: Sequence[Cell]) -> Generator[CellResult, None, None]:
        """Run every cell and yield its result."""
        self._book.add(cells)
        while not self._book.is_done:
            self._look_for_hosts()
            self._give_out()
            for agent, news in self._hear():
                for item in news:
                    yield from self._note(agent, item)
            for host in self._book.expire(time.monotonic()):
                self._drop(host)
            for lease in self._book.parked():
                yield self._keep(_lost(lease), {})

    def _look_for_hosts(self) -> None:
        """Place an agent on every host that has none."""
        if time.monotonic() - self._looked_s < LOOK_S and self._agents:
            return
        self._looked_s = time.monotonic()
        for node in self._ray.nodes():
            host = node["NodeID"]
            if node["Alive"] and host not in self._agents and self._broken.get(host, 0) < 3:
                self._agents[host] = self._place(node)
        if not self._agents:
            raise EngineError(
                "no host of the Ray cluster is left to run cells on",
                hint="run the same command again: finished cells stay finished",
            )

    def _place(self, node: Mapping[str, Any]) -> _Agent:
        """Start an agent on one host and nowhere else."""
        strategies = self._ray.util.scheduling_strategies
        where = strategies.NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        gpus = int(node["Resources"].get("GPU", 0))
        jobs = self._options.jobs or gpus or max(1, int(node["Resources"].get("CPU", 1)))
        settings = {**self._settings, "jobs": jobs, "host": node["NodeManagerHostname"]}
        settings["host_id"] = node["NodeID"]
        kind = self._ray.remote(AgentProcess)
        actor = kind.options(
            scheduling_strategy=where, num_cpus=0, num_gpus=gpus, max_restarts=0
        ).remote(list(self._options.agent_command), settings, str(PROJECT))
        return _Agent(host=node["NodeID"], actor=actor, jobs=jobs)

    def _give_out(self) -> None:
        """Ask every agent that is not being waited for, with new orders where it has room."""
        now = time.monotonic()
        for agent in self._agents.values():
            if agent.answer is not None:
                continue
            room = agent.jobs - self._book.held_by(agent.host)
            given = self._book.take(agent.host, room if agent.is_ready else 0, now)
            orders = [encode_order(lease.cell, lease.attempt) for lease in given]
            agent.answer = agent.actor.exchange.remote(orders, EXCHANGE_S)
            for lease in given:
                self._on_event(Started(lease.cell.cell_id))
        if not any(agent.answer for agent in self._agents.values()):
            time.sleep(EXCHANGE_S)

    def _hear(self) -> list[tuple[_Agent, list[dict[str, Any]]]]:
        """Return what agents have answered since the last time."""
        asked = {agent.answer: agent for agent in self._agents.values() if agent.answer}
        ready, _ = self._ray.wait(list(asked), num_returns=1, timeout=EXCHANGE_S * 2)
        heard = []
        for answer in ready:
            agent = asked[answer]
            agent.answer = None
            try:
                news = self._ray.get(answer)
            except self._ray.exceptions.RayError as error:
                self._lose(agent, error)
                continue
            self._book.hear(agent.host, time.monotonic())
            heard.append((agent, news))
        return heard

    def _lose(self, agent: _Agent, error: Exception) -> None:
        """Take note that an agent, or its whole host, is gone.

        Raises:
            EngineError: it refused to begin.
        """
        if "AgentRefused" in str(error):
            reason = str(error).strip().splitlines()[-1].partition("AgentRefused: ")[2]
            raise EngineError(f"an agent cannot begin: {reason}")
        self._broken[agent.host] = self._broken.get(agent.host, 0) + 1
        self._book.lose(agent.host)
        self._drop(agent.host)

    def _drop(self, host: str) -> None:
        """Forget an agent, and end it where it still lives."""
        agent = self._agents.pop(host, None)
        if agent is not None:
            self._ray.kill(agent.actor)

    def _note(self, agent: _Agent, item: Mapping[str, Any]) -> Generator[CellResult, None, None]:
        """Keep one result, if its lease still counts."""
        if "ready" in item:
            agent.is_ready = True
            return
        result = CellResult.from_json(item["result"], f"agent on {agent.host}")
        if self._book.finish(agent.host, result.cell_id, item["attempt"]):
            yield self._keep(result, unpack_files(item["files"]))

    def _keep(self, result: CellResult, files: Mapping[str, bytes]) -> CellResult:
        """Write a cell's folder, its result last."""
        folder = self._run_dir / result.cell_id
        earlier = wipe_folder(folder)
        folder.mkdir(parents=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        result = replace(result, attempt=result.attempt + earlier)
        write_result(folder, result)
        self._on_event(Finished(result))
        return result


@dataclass
class _Agent:
    """One agent, as the driver sees it."""

    host: str
    actor: Any
    jobs: int
    answer: Any = None
    is_ready: bool = False


class AgentRefused(Exception):
    """The process of an agent ended before it could work; its last words are the message."""


class AgentProcess:
    """Ray's side of an agent: relays orders and news between the driver and a clean process."""

    def __init__(self, command: list[str], settings: dict[str, Any], project: str) -> None:
        """Start the process; it says when it is ready."""
        paths = [project, os.environ.get("PYTHONPATH", "")]
        self._news: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._words = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long-lived as the process
        self._process = subprocess.Popen(
            [*command, json.dumps(settings)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def exchange(self, orders: list[str], wait_s: float) -> list[dict[str, Any]]:
        """Hand orders over and return the news there is after at most `wait_s` seconds.

        Raises:
            AgentRefused: the process has ended.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, which is said below
            self._process.stdin.writelines(f"{order}\n" for order in orders)
            self._process.stdin.flush()
        lines = []
        with suppress(queue.Empty):
            lines.append(self._news.get(timeout=wait_s))
            while True:
                lines.append(self._news.get_nowait())
        if "" in lines:
            self._words.seek(0)
            said = [*self._said, *self._words.read().strip().splitlines()]
            raise AgentRefused((said or ["no output"])[-1])
        return [json.loads(line) for line in lines]

    _said: tuple[str, ...] = ()

    def _listen(self) -> None:
        """Take in lines as they come, on a thread of its own; an empty one is the end."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                self._news.put(line)
            else:
                self._said = (*self._said, line.strip())[-LAST_LINES:]
        self._news.put("")


def _lost(lease: Lease) -> CellResult:
    """Return the result of a cell that is given up."""
    why = f"{lease.attempt} hosts were lost while they ran it, the last while it ran alone"
    outcome = Outcome.LOST
    return CellResult(
        **lease.cell.identity(),
        outcome=outcome,
        status=outcome.status,
        message=why,
        attempt=lease.attempt,
    )
