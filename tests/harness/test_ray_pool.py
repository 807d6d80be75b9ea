"""Cells on a real cluster of two hosts: one is lost in the middle, every cell has one result."""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness.environment import describe_environment
from harness.execution import RunOptions
from harness.pools.orders import decode_order, encode_order
from harness.pools.ray_pool import RayOptions, run_cells_on_ray
from harness.results import Outcome, read_result
from harness.runner import run_matrix
from mudpuppy.errors import ConfigError, EngineError
from tests.harness import fake_worker

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

AGENT = (
    sys.executable,
    "-c",
    "import sys; import harness.pools.agent as agent, harness.pools.spawn as spawn; "
    "from tests.harness import fake_worker; spawn.WORKER_COMMAND = fake_worker.COMMAND; "
    "agent.judge_cell = fake_worker.judge; agent.prepare_model = lambda cells, say: None; "
    "sys.exit(agent.main(sys.argv[1:]))",
)
"""An agent whose workers do what the names of their cells say."""


@pytest.fixture
def cluster():
    """Start a cluster of two hosts on this machine."""
    on_sigterm = signal.getsignal(signal.SIGTERM)  # a host of Ray's puts its own there
    made = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    yield made
    ray.shutdown()
    made.shutdown()
    signal.signal(signal.SIGTERM, on_sigterm)


def options(address: str | None, **more: Any) -> RayOptions:
    return RayOptions(address=address, jobs=1, isolation="spawn", agent_command=AGENT, **more)


@pytest.mark.distributed
@pytest.mark.timeout(180)
def test_a_host_lost_in_the_middle_costs_no_result(cluster, tmp_path: Path):
    second = cluster.add_node(num_cpus=1)
    cells = fake_worker.make_cells(*(f"slow-{i}" for i in range(8)), "fail-one")
    hosts: Counter[str] = Counter()
    lost = False

    def on_event(event: Any) -> None:
        nonlocal lost
        result = getattr(event, "result", None)
        if result is None:
            return
        hosts[result.environment["host_id"]] += 1
        if not lost and len(hosts) == 2:
            lost = True
            cluster.remove_node(second, allow_graceful=False)

    matrix = run_matrix(
        cells,
        tmp_path,
        judge=fake_worker.judge,
        on_event=on_event,
        dispatch=partial(run_cells_on_ray, options(cluster.address, lease_s=20.0)),
    )

    assert lost
    assert sorted(cell.name for cell in cells) == sorted(one.name for one in matrix.cells)
    assert [Outcome.FAILED] == [r.outcome for r in matrix.cells if r.outcome != Outcome.PASSED]
    for result in matrix.cells:
        folder = tmp_path / result.cell_id
        assert read_result(folder) == result
        assert "says hello" in (folder / "output.log").read_text()


@pytest.mark.distributed
@pytest.mark.timeout(120)
def test_an_agent_of_other_code_is_refused(cluster, tmp_path: Path):
    other = {**describe_environment(), "sources": "something else"}
    run = RunOptions(judge=fake_worker.judge, environment=other)
    results = run_cells_on_ray(
        options(cluster.address), fake_worker.make_cells("pass"), tmp_path, run
    )

    with pytest.raises(EngineError, match=r"other code than the driver's: sources is"):
        list(results)


def test_an_order_arrives_as_it_was_given():
    (cell,) = fake_worker.make_cells("pass")

    assert (cell, 3) == decode_order(encode_order(cell, 3))


def test_without_a_cluster_at_the_address_the_flag_is_named(tmp_path: Path):
    run = RunOptions(judge=fake_worker.judge, environment={})
    results = run_cells_on_ray(
        options("127.0.0.1:1"), fake_worker.make_cells("pass"), tmp_path, run
    )

    start = time.monotonic()
    with pytest.raises(ConfigError, match=r"--address 127\.0\.0\.1:1"):
        list(results)
    assert time.monotonic() - start < 60
