"""The fork server: it tells why it cannot serve, and its forks share nothing but the imports."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.pools.base import Job
from harness.pools.warm import PoolError, Recipe, WarmPool
from harness.results import WorkerExit
from harness.zygote import Unclean, require_clean

HERE = "tests.harness.test_zygote"


def do_nothing() -> None:
    """Preload nothing."""


def break_down() -> None:
    """Preload with a typing mistake in it."""
    import harness.no_such_module  # type: ignore[import-not-found]  # noqa: F401


def compute_early() -> None:
    """Preload and compute, as a zygote must not."""
    threading.Thread(target=time.sleep, args=(60,), name="early", daemon=True).start()


def hang() -> None:
    """Preload and never come to an end."""
    time.sleep(600)


def have_no_room() -> None:
    """Preload, and let the first fork fail as on a machine without room for a process."""
    fork = os.fork

    def fail() -> int:
        os.fork = fork
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    os.fork = fail


def import_torch() -> None:
    """Preload what a matrix product needs."""
    import torch  # noqa: F401


def describe_state(argv: list[str]) -> int:
    """Be a job: write down what it finds."""
    import random
    import tempfile

    libraries = [name for name in ("torch", "numpy") if name in sys.modules]
    seen = {
        "cwd": str(Path.cwd()),
        "environment": dict(os.environ),
        "temporary": tempfile.gettempdir(),
        "random": random.random(),
        "session": os.getsid(0) == os.getpid(),
        "libraries": libraries,
        "shown": (Path("/proc/self/environ").read_bytes().split(b"\0")[0:200]).__repr__(),
    }
    print("said on standard output")
    print("said on standard error", file=sys.stderr)
    os.system("echo said by a child")
    (Path(argv[0]) / "seen.json").write_text(json.dumps(seen), encoding="utf-8")
    os.environ["LEFT_BEHIND"] = "yes"
    random.seed(0)
    return 7


def multiply(argv: list[str]) -> int:
    """Be a job: multiply in the leader's child, with several threads, forward and backward."""
    import torch

    from harness.phases import run_phase

    def work() -> None:
        assert torch.get_num_threads() == 2
        one = torch.rand(1024, 1024, requires_grad=True)
        (one @ one).sum().backward()
        (Path(argv[0]) / "product").write_text(str(one.grad is not None), encoding="utf-8")

    run_phase("multiplying", work)
    run_phase("multiplying again", work)
    return 0


def eat_memory(argv: list[str]) -> int:
    """Be a job: take 200 MiB."""
    bytearray(200 * 2**20)[::4096] = b"x" * (200 * 2**20 // 4096)
    return 0


@pytest.fixture
def pool() -> Iterator[WarmPool]:
    names = ("describe_state", "multiply", "eat_memory")
    recipes = {name: Recipe(f"{HERE}:do_nothing", f"{HERE}:{name}") for name in names}
    recipes["multiply"] = Recipe(f"{HERE}:import_torch", f"{HERE}:multiply")
    recipes["broken"] = Recipe(f"{HERE}:break_down", f"{HERE}:describe_state")
    recipes["hanging"] = Recipe(f"{HERE}:hang", f"{HERE}:describe_state")
    recipes["poor"] = Recipe(f"{HERE}:have_no_room", f"{HERE}:describe_state")
    recipes["early"] = Recipe(f"{HERE}:compute_early", f"{HERE}:describe_state")
    made = WarmPool(recipes)
    yield made
    made.close()


def make_job(folder: Path, level: Any, **settings: Any) -> Job:
    scratch = folder / "scratch"
    scratch.mkdir(parents=True)
    given = {**os.environ, **settings.pop("environment", {}), "TMPDIR": str(scratch)}
    settings.setdefault("timeout_s", 20.0)
    return Job(
        folder=folder, scratch=scratch, log=folder / "output.log", environment=given,
        preload=level, **settings,
    )  # fmt: skip


def finish(pool: WarmPool, job: Job) -> WorkerExit:
    worker = pool.start(job)
    while (ended := worker.poll()) is None:
        pool.wait(0.1)
    return ended


def test_a_fork_has_its_own_place_output_environment_and_random_numbers(
    pool: WarmPool, tmp_path: Path
):
    seen = []
    for name in ("one", "two"):
        environment = {"MASTER_PORT": name}
        job = make_job(tmp_path / name, "describe_state", environment=environment)
        ended = finish(pool, job)
        seen.append(json.loads((job.folder / "seen.json").read_text(encoding="utf-8")))
        log = job.log.read_text(encoding="utf-8").splitlines()

        assert (7, "describe_state") == (ended.exit_code, ended.preload)
        assert ["said on standard output", "said on standard error", "said by a child"] == log
        assert [str(job.scratch)] * 2 == [seen[-1]["cwd"], seen[-1]["temporary"]]
        assert seen[-1]["session"]
        assert f"MUDPUPPY_CELL_FOLDER={job.folder}'" in seen[-1]["shown"]  # what others see of it
        given = {**job.environment, "MUDPUPPY_CELL_FOLDER": str(job.folder)}
        assert given == seen[-1]["environment"]

    assert seen[0]["random"] != seen[1]["random"]


def test_several_threads_compute_in_the_phases_of_a_fork(pool: WarmPool, tmp_path: Path):
    job = make_job(tmp_path / "cell", "multiply", environment={"OMP_NUM_THREADS": "2"})

    ended = finish(pool, job)

    assert 0 == ended.exit_code, job.log.read_text(encoding="utf-8")
    assert "True" == (job.folder / "product").read_text(encoding="utf-8")


def test_a_preload_that_fails_is_told_with_its_traceback(pool: WarmPool, tmp_path: Path):
    with pytest.raises(PoolError) as found:
        finish(pool, make_job(tmp_path / "cell", "broken"))

    assert "could not be made ready by tests.harness.test_zygote:break_down" in str(found.value)
    assert "No module named 'harness.no_such_module'" in str(found.value)
    assert "--isolation spawn" in str(found.value)


def test_a_preload_that_leaves_a_thread_is_no_zygote(pool: WarmPool, tmp_path: Path):
    with pytest.raises(PoolError, match="threads run besides the first one"):
        finish(pool, make_job(tmp_path / "cell", "early"))


def test_a_preload_that_hangs_is_ended_and_named(
    pool: WarmPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("harness.pools.warm.READY_S", 1.0)

    with pytest.raises(PoolError) as found:
        finish(pool, make_job(tmp_path / "cell", "hanging"))

    assert f"was not ready after 1 s in {HERE}:hang" in str(found.value)
    assert () == pool.zygote_pids()


def test_an_idle_zygote_that_dies_is_noticed_and_costs_no_waiting(pool: WarmPool, tmp_path: Path):
    finish(pool, make_job(tmp_path / "one", "describe_state"))
    (pid,) = pool.zygote_pids()
    os.kill(pid, signal.SIGKILL)
    pool.wait(5.0)

    assert () == pool.zygote_pids()
    begin = time.monotonic()
    pool.wait(0.2)
    assert time.monotonic() - begin > 0.15
    assert 7 == finish(pool, make_job(tmp_path / "two", "describe_state")).exit_code


def test_a_fork_for_which_there_is_no_room_costs_one_job(pool: WarmPool, tmp_path: Path):
    lost = finish(pool, make_job(tmp_path / "one", "poor"))
    pids = pool.zygote_pids()

    assert lost.lost
    assert "could not be forked: [Errno 11] Resource temporarily unavailable" == lost.words
    assert 7 == finish(pool, make_job(tmp_path / "two", "poor")).exit_code
    assert pids == pool.zygote_pids()


def test_a_process_with_a_device_open_is_not_forked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("harness.zygote._other_threads", lambda: iter(()))
    monkeypatch.setattr("harness.zygote.DEVICE_FILES", ("/dev/zero",))
    require_clean()

    with Path("/dev/zero").open("rb"), pytest.raises(Unclean, match="a device is open: /dev/zero"):
        require_clean()


def test_memory_is_limited_and_what_it_added_is_recorded(pool: WarmPool, tmp_path: Path):
    ended = finish(pool, make_job(tmp_path / "free", "eat_memory"))
    limited = make_job(tmp_path / "limited", "eat_memory", memory_limit=100 * 2**20)

    refused = finish(pool, limited)

    assert ended.added_rss_bytes is not None
    assert 200 * 2**20 < ended.added_rss_bytes < 220 * 2**20
    assert ended.added_rss_bytes < ended.peak_rss_bytes
    assert 1 == refused.exit_code
    assert "MemoryError" in limited.log.read_text(encoding="utf-8")


def test_changed_source_makes_a_new_zygote_and_the_old_one_ends(tmp_path: Path):
    state = ["yesterday"]
    recipe = Recipe(f"{HERE}:do_nothing", f"{HERE}:describe_state")
    pool = WarmPool({"engine": recipe}, sign=lambda: state[0])
    try:
        pids = []
        for number, word in enumerate(["yesterday", "yesterday", "today"]):
            state[0] = word
            finish(pool, make_job(tmp_path / str(number), "engine"))
            pids.append(pool.zygote_pids())
        assert pids[0] == pids[1] != pids[2]
        assert 1 == len(pids[2])
    finally:
        pool.close()


def test_another_surrounding_makes_a_new_zygote(pool: WarmPool, tmp_path: Path):
    finish(pool, make_job(tmp_path / "one", "describe_state"))
    before = pool.zygote_pids()

    finish(pool, make_job(tmp_path / "two", "describe_state", environment={"HF_HUB_OFFLINE": "1"}))

    assert before != pool.zygote_pids()


def test_the_light_zygote_has_no_torch_and_the_engine_no_thread_that_matters():
    script = (
        "import sys\n"
        "from harness.worker import import_light\n"
        "from harness.zygote import require_clean\n"
        "import_light()\n"
        "require_clean()\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
    )

    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.slow
def test_the_engine_is_imported_without_computing():
    script = (
        "from harness.worker import import_engine\n"
        "from harness.zygote import require_clean\n"
        "import_engine()\n"
        "require_clean()\n"
    )
    single = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

    subprocess.run([sys.executable, "-c", script], env=single, check=True)
