"""kill -9 of the runner, of the zygote and of workers, at any moment: every cell exactly once.

MUDPUPPY_KILLS=100 pytest tests/harness/test_kills.py
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from harness.history import History
from harness.results import Outcome, read_result
from tests.harness import fake_worker
from tests.harness.test_runner import is_alive, wait_until

KILLS = int(os.environ.get("MUDPUPPY_KILLS", "6"))
"""How many processes are killed; a hundred take a minute or two."""
CELLS = 6 * KILLS
DRIVER = """
    import sys
    from contextlib import closing
    from pathlib import Path
    from harness.history import History
    from harness.recorder import Recorder
    from harness.runner import run_matrix
    from tests.harness import fake_worker

    folder = Path(sys.argv[1])
    names = [f"nap-{number}" for number in range(int(sys.argv[2]))]
    with (
        History(folder / "history.sqlite", create=True) as history,
        closing(fake_worker.make_warm_pool()) as pool,
    ):
        print("ready", flush=True)
        run_matrix(fake_worker.make_cells(*names), folder / "run", judge=fake_worker.judge, jobs=3,
                   pool=pool, name="small", recorder=Recorder(history))
"""


def start_driver(folder: Path) -> subprocess.Popen[bytes]:
    driver = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(DRIVER), str(folder), str(CELLS)],
        env={**os.environ, "PYTHONPATH": fake_worker.PATH},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert driver.stdout is not None
    driver.stdout.readline()
    return driver


def children_of(pid: int) -> list[int]:
    """Return the children of a process; none when it has ended."""
    with suppress(OSError):
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8")
        return [int(word) for word in text.split()]
    return []


def descendants_of(pid: int) -> Iterator[int]:
    for child in children_of(pid):
        yield child
        yield from descendants_of(child)


def choose_victim(driver: subprocess.Popen[bytes], kind: str) -> int | None:
    """Return a process to kill: the runner, its zygote, or a fork of that."""
    if kind == "runner":
        return driver.pid
    zygotes = children_of(driver.pid)
    if kind == "zygote":
        return zygotes[0] if zygotes else None
    workers = [worker for zygote in zygotes for worker in children_of(zygote)]
    return workers[0] if workers else None


def wait_for_victim(driver: subprocess.Popen[bytes], kind: str) -> int | None:
    """Return a process to kill once there is one; None when the run is over before."""
    end = time.monotonic() + 30
    while driver.poll() is None and time.monotonic() < end:
        victim = choose_victim(driver, kind)
        if victim is not None:
            return victim
        time.sleep(0.01)
    return None


def test_whoever_is_killed_every_cell_ends_up_in_the_history_exactly_once(tmp_path: Path):
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    print(f"seed {seed}")  # shown when the test fails
    killed: list[str] = []
    seen: set[int] = set()
    driver = start_driver(tmp_path)
    for number in range(KILLS):
        kind = ("runner", "zygote", "worker")[number % 3]
        time.sleep(chance.uniform(0.0, 0.4))
        if driver.poll() is not None:
            break
        victim = wait_for_victim(driver, kind)
        if victim is None:
            continue
        seen.update(descendants_of(driver.pid))
        with suppress(ProcessLookupError):  # it was faster
            os.kill(victim, signal.SIGKILL)
            killed.append(kind)
        if kind == "runner":
            driver.communicate(timeout=20)
            driver = start_driver(tmp_path)
    _, said = driver.communicate(timeout=300)

    assert 0 == driver.returncode, said.decode()
    print(f"killed {len(killed)}: {', '.join(killed)}")
    assert {"runner", "zygote"} <= set(killed)
    names = [f"nap-{number}" for number in range(CELLS)]
    with History(tmp_path / "history.sqlite") as history:
        (run,) = history.runs()
        rows = history.results_in(run.key)
        executed = history.query("SELECT count(*), count(DISTINCT cell_key) FROM results")
    assert sorted(names) == sorted(row.name for row in rows)
    assert [(CELLS, CELLS)] == executed
    results = [read_result(path.parent) for path in (tmp_path / "run").glob("*/result.json")]
    outcomes = [one.outcome for one in results if one is not None]
    assert CELLS == len(outcomes)
    assert {Outcome.PASSED, Outcome.CRASHED, Outcome.LOST} >= set(outcomes)
    # What was killed itself is a crash; what went down with its zygote has run again.
    assert killed.count("worker") >= outcomes.count(Outcome.CRASHED)
    # To be lost for good takes a second zygote, in which the cell had run alone.
    assert max(1, killed.count("zygote")) > outcomes.count(Outcome.LOST)
    wait_until(lambda: not [pid for pid in seen if is_alive(pid)])
