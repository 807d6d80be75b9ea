"""Side by side: read a bf16 checkpoint with `cat`, scan its values, and do what people write.

python benchmarks/scan.py [--runs 5] [--size-gb 2] [--output benchmarks/results]

Matrices of 32 MB with random values, in the cache of the system. Every run is a fresh process, all
kinds take turns, and ratios are of runs that follow each other. `finite, min, max` is what the
default probes of files and weights need; `all statistics` adds zeros, rms, norms of rows, zero and
repeated rows. The doctor's whole process is measured from its start to its exit code.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
NAME = "model.safetensors"
SIDE = 4096
KINDS = {
    "cat": "`cat FILE > /dev/null`",
    "fast": "scan: finite, min, max",
    "all": "scan: all statistics",
    "torch": "`load_file` + `torch.isfinite(t).all()`, two threads",
    "doctor": "`mudpuppy-doctor PATH --select MPD301`, whole process",
    "whole": "`mudpuppy-doctor PATH`, whole process",
    "quick": "`mudpuppy-doctor PATH --quick`, whole process",
    "files": "`mudpuppy-doctor PATH --depth files`, whole process",
    "help": "`mudpuppy-doctor --help`, whole process",
}
DOCTOR = {
    "doctor": ["--select", "MPD301"],
    "whole": [],
    "quick": ["--quick"],
    "files": ["--depth", "files"],
}
GOALS = {
    "finite, min, max at 1.3x of cat": ("cat", "fast", 1.3),
    "all statistics at 0.5x of cat": ("cat", "all", 0.5),
    "8x as fast as load_file + torch.isfinite": ("torch", "fast", 8.0),
}
START_LIMIT_S = 0.35
MEMORY_LIMIT_MB = 200.0


def write_model(folder: Path, size_gb: float) -> int:
    """Write a checkpoint of random bf16 matrices and return its bytes."""
    random = np.random.default_rng(0)
    count = max(1, round(size_gb * 1e9 / (2 * SIDE * SIDE)))
    blocks = [
        (random.standard_normal((SIDE, SIDE), np.float32) * 0.02).view(np.uint32) >> 16
        for _ in range(4)
    ]
    header = {
        f"model.layers.{number}.mlp.up_proj.weight": {
            "dtype": "BF16",
            "shape": [SIDE, SIDE],
            "data_offsets": [2 * SIDE * SIDE * number, 2 * SIDE * SIDE * (number + 1)],
        }
        for number in range(count)
    }
    raw = json.dumps(header).encode()
    with (folder / NAME).open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for number in range(count):
            file.write(blocks[number % 4].astype(np.uint16).tobytes())
    (folder / "config.json").write_text('{"model_type": "other", "dtype": "bfloat16"}')
    return (folder / NAME).stat().st_size


def run_child(kind: str, folder: Path) -> dict[str, float]:
    """Scan in this process and return seconds and the memory over the imports."""
    if kind == "torch":
        import torch
        from safetensors.torch import load_file

        torch.set_num_threads(2)
        started, cpu = time.perf_counter(), time.process_time()
        assert all(bool(torch.isfinite(t).all()) for t in load_file(folder / NAME).values())
        return {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}
    from harness.evidence.files.headers import read_weight_file
    from harness.evidence.values.rows import describe_rows
    from harness.evidence.values.scan import scan

    tensors = read_weight_file(folder / NAME, NAME).tensors
    before = peak_mb()
    started, cpu = time.perf_counter(), time.process_time()
    for found in scan(folder, tensors, rows=kind == "all"):
        assert found.extremes.nonfinite == 0
        describe_rows(folder, found)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"seconds": seconds, "cpu": cpu, "extra_mb": peak_mb() - before}


def peak_mb() -> float:
    """Return the peak resident memory of this process so far."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1e3


def measure(kind: str, folder: Path) -> dict[str, float]:
    """Return the figures of one run in a process of its own."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")  # compiled once, as when installed
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    python = [sys.executable, "-m", "reports.commands.doctor"]
    if kind == "cat":
        words = ["sh", "-c", f"cat '{folder / NAME}' > /dev/null"]
    elif kind == "help":
        words = [*python, "--help"]
    elif kind in DOCTOR:
        words = [*python, str(folder), *DOCTOR[kind]]
    else:
        words = [sys.executable, __file__, "--child", kind, "--folder", str(folder)]
    started, cpu = time.perf_counter(), cpu_seconds()
    done = subprocess.run(words, capture_output=True, text=True, env=env, check=False)
    seconds, cpu = time.perf_counter() - started, cpu_seconds() - cpu
    if kind in ("cat", "help", *DOCTOR):
        return {"seconds": seconds, "cpu": cpu}
    found: dict[str, float] = json.loads(done.stdout)
    return found


def cpu_seconds() -> float:
    """Return the processor time of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def report(runs: list[dict[str, dict[str, float]]], size: int, load: float) -> tuple[str, bool]:
    """Return the table that people read, and whether every goal is met."""
    lines = [
        "# Reading every weight",
        "",
        f"{size / 1e9:.2f} GB of bf16 in matrices of {SIDE} x {SIDE}, in the system's cache; "
        f"{len(runs)} interleaved runs in fresh processes, medians. Load average before: "
        f"{load:.1f} on {os.cpu_count()} cores; where it is more than a little, threads wait.",
        "",
        "| | median | best | cpu | GB/s | x of cat (median of pairs) | memory over imports |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for kind, label in KINDS.items():
        took = [run[kind]["seconds"] for run in runs]
        median = statistics.median(took)
        ratio = statistics.median(run["cat"]["seconds"] / run[kind]["seconds"] for run in runs)
        extra = max((run[kind].get("extra_mb", 0.0) for run in runs), default=0.0)
        reads = kind not in ("files", "help", "quick")
        cpu = statistics.median(run[kind]["cpu"] for run in runs)
        cells = [f"{median:.3f} s", f"{min(took):.3f} s", f"{cpu:.3f} s"]
        cells += [f"{size / median / 1e9:.1f}", f"{ratio:.2f}"] if reads else ["-", "-"]
        lines.append(f"| {label} | {' | '.join(cells)} | {f'{extra:.0f} MB' if extra else '-'} |")
    met = {}
    for goal, (slow, quick, factor) in GOALS.items():
        ratios = [run[slow]["seconds"] / run[quick]["seconds"] for run in runs]
        said = f"{goal} (median {statistics.median(ratios):.2f}, best {max(ratios):.2f})"
        met[said] = statistics.median(ratios) >= factor
    for kind in ("files", "help"):
        best = min(run[kind]["seconds"] for run in runs)
        met[f"{KINDS[kind]} in {START_LIMIT_S} s (best {best:.2f})"] = best <= START_LIMIT_S
    most = max(run[kind]["extra_mb"] for run in runs for kind in ("fast", "all"))
    met[f"memory below {MEMORY_LIMIT_MB:.0f} MB"] = most < MEMORY_LIMIT_MB
    lines += ["", *(f"- {goal}: {'met' if ok else 'NOT met'}" for goal, ok in met.items()), ""]
    lines.append(f"Python {platform.python_version()}, numpy {np.__version__}.")
    return "\n".join(lines) + "\n", all(met.values())


def main() -> int:
    """Run the benchmark; exit code 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--size-gb", type=float, default=2.0)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(run_child(args.child, args.folder)))
        return 0
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_model(folder, args.size_gb)
        for kind in ("cat", "whole", "help"):  # fills the cache, compiles the modules
            measure(kind, folder)
        runs = [{kind: measure(kind, folder) for kind in KINDS} for _ in range(args.runs)]
    text, all_met = report(runs, size, load)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "scan.md").write_text(text, encoding="utf-8")
    print(text)
    return 0 if all_met else 1


if __name__ == "__main__":
    sys.exit(main())
