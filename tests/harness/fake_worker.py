"""A worker that does what its cell's name says, and a judge that believes it; for tests only.

Run as a script it is the worker; imported it gives tests cells, a judge and the command.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve()
PATH = os.pathsep.join(map(str, (HERE.parent, HERE.parents[2])))
"""What a script needs on its path to import this file and the project."""
COMMAND = (sys.executable, str(HERE))
SHOWN = ("TMPDIR", "OMP_NUM_THREADS", "MASTER_PORT", "CUDA_VISIBLE_DEVICES")
FINDING: dict[str, object] = {
    "code": "MPD203",
    "name": "adapter-never-trained",
    "modes": ["FM08"],
    "status": "failed",
    "severity": "critical",
    "message": "12 of 12 adapter tensors never moved",
    "evidence": [],
    "cause": "no optimizer steps",
    "remedy": "train it",
    "reason": "",
    "subject": ".",
}


def main(argv: list[str]) -> int:
    """Be the entry of a fork: as `harness.worker.main`."""
    return work(Path(argv[0]))


def preload() -> None:
    """Be what a zygote calls once."""


def make_warm_pool():  # type: ignore[no-untyped-def]
    """Return a pool whose forks are this worker."""
    from harness.pools.spawn import SpawnPool
    from harness.pools.warm import Recipe, WarmPool

    name = "tests.harness.fake_worker"
    recipe = Recipe(f"{name}:preload", f"{name}:main")
    recipes = {"light": recipe, "engine": recipe}
    return WarmPool(recipes, spawn=SpawnPool(COMMAND))


def work(folder: Path) -> int:
    """Behave as the first word of the cell's name says."""
    cell = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    behaviour = cell["name"].split("-")[0]
    print(f"cell {cell['name']} says hello", flush=True)
    with (folder.parent / "starts.txt").open("a", encoding="utf-8") as handle:
        handle.write(f"{cell['name']}\n")
    if behaviour == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if behaviour == "patricide":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    if behaviour == "raise":
        raise RuntimeError("the worker broke <b>here</b> | there")
    if behaviour in ("hang", "stubborn", "escape"):
        _hang(folder, behaviour)
    if behaviour == "loud":
        _shout()
    if behaviour == "leave":
        _spawn(folder, new_session=False)
    if behaviour == "sometimes":
        times = (folder.parent / "starts.txt").read_text(encoding="utf-8").split()
        if times.count(cell["name"]) % 2 == 0:
            raise RuntimeError("it was one of those days")
    if behaviour == "nap":
        time.sleep(0.1)
    if behaviour == "slow":
        time.sleep(1.0)
    if behaviour == "memory":
        bytearray(300 * 2**20)[::4096] = b"x" * (300 * 2**20 // 4096)
    seen = {
        "behaviour": behaviour,
        "cwd": str(Path.cwd()),
        "plant": cell["plant"],
        "environment": {k: os.environ[k] for k in SHOWN if k in os.environ},
        "is_session_leader": os.getsid(0) == os.getpid(),
        "parent": os.getppid(),
    }
    (folder / "observations.json").write_text(json.dumps(seen), encoding="utf-8")
    return 0


def _hang(folder: Path, behaviour: str) -> None:
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _spawn(folder, new_session=behaviour == "escape")
    while True:
        time.sleep(60)


def _spawn(folder: Path, *, new_session: bool) -> None:
    """Start a grandchild that ignores SIGTERM, and note its pid."""
    sleep = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", sleep], start_new_session=new_session)
    (folder / "grandchild.pid").write_text(str(child.pid), encoding="utf-8")


def _shout() -> None:
    line = b"\xff\xfe noise " * 100 + b"\n"
    for _ in range(20_000):
        sys.stdout.buffer.write(line)
    print("the last line", flush=True)


def make_cells(*names: str, timeout_s: float = 30.0):  # type: ignore[no-untyped-def]
    """Return a cell for each name, as the matrix would."""
    from harness.matrix import Cell
    from scenarios.schema import Expectation

    return [
        Cell(
            cell_id=name.encode().hex()[-12:].rjust(12, "0"),
            name=name,
            title=name.title(),
            number=number,
            config={"model": "none", "method": "lora"},
            expect=Expectation(),
            timeout_s=timeout_s,
        )
        for number, name in enumerate(names, start=1)
    ]


def judge(cell, folder, worker_exit):  # type: ignore[no-untyped-def]
    """Turn what the fake worker left behind into a result."""
    from harness.results import CellResult, Outcome

    outcome, message = Outcome.PASSED, "as expected"
    findings: tuple[dict[str, object], ...] = ()
    if worker_exit.timed_out:
        outcome, message = Outcome.TIMEOUT, worker_exit.words
    elif worker_exit.exit_code != 0 or not (folder / "observations.json").is_file():
        outcome, message = Outcome.CRASHED, worker_exit.words
    elif cell.name.startswith("fail"):
        outcome, message = Outcome.FAILED, "1 finding: the adapter never moved"
        findings = (FINDING,)
    elif cell.name.startswith("reject"):
        outcome, message = Outcome.REJECTED_AS_EXPECTED, "rejected with MP-R07"
    elif cell.name.startswith("skip"):
        outcome, message = Outcome.NOT_RUN, "no GPU here"
    elif cell.name.startswith("unjudged"):
        raise ZeroDivisionError("the judge broke")
    return CellResult(
        **cell.identity(), outcome=outcome, status=outcome.status, message=message,
        findings=findings, metrics={"loss_before": 2.0, "loss_after": 1.0},
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(work(Path(sys.argv[1])))
