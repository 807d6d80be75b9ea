"""Side by side: scan a base, a merge and a third checkpoint, and compare the merge with its base.

python benchmarks/lineage.py [--runs 5] [--size-gb 1] [--output benchmarks/results]

Base and merge are bf16 matrices of 32 MB, the adapter has rank 16 on all of them; a plain scan
reads three checkpoints of that size with all statistics. Every run is a fresh process, the kinds
take turns, and ratios are of runs that follow each other.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SIDE, RANK = 4096, 16
KINDS = {
    "scan": "plain scan of three checkpoints, all statistics",
    "lineage": "k and residual of every module (base, merge, adapter)",
    "both": "lineage and the drift of every tensor",
}
GOAL = 2.5


def write_tensors(path: Path, tensors: dict[str, np.ndarray[Any, Any]], dtype: str) -> None:
    """Write a safetensors file."""
    header, position = {}, 0
    for name, value in tensors.items():
        span = [position, position + value.nbytes]
        header[name] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": span}
        position = span[1]
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for value in tensors.values():
            file.write(value.tobytes())


def write_models(folder: Path, size_gb: float) -> None:
    """Write base, adapter and merge."""
    random = np.random.default_rng(0)
    modules = [f"model.layers.{n}.mlp.up_proj" for n in range(round(size_gb * 1e9 / 2 / SIDE**2))]
    plain = [
        (random.standard_normal((SIDE, SIDE), np.float32) * 0.02).astype(ml_dtypes.bfloat16)
        for _ in range(2)
    ]
    base, merged, adapter = {}, {}, {}
    for number, module in enumerate(modules):
        a = random.standard_normal((RANK, SIDE), np.float32) * 0.02
        b = random.standard_normal((SIDE, RANK), np.float32) * 0.02
        base[f"{module}.weight"] = old = plain[number % 2]
        merged[f"{module}.weight"] = (old.astype(np.float32) + 2 * (b @ a)).astype(old.dtype)
        adapter[f"base_model.model.{module}.lora_A.weight"] = a
        adapter[f"base_model.model.{module}.lora_B.weight"] = b
    for name, tensors in (("base", base), ("merged", merged)):
        (folder / name).mkdir()
        write_tensors(folder / name / "model.safetensors", tensors, "BF16")
        (folder / name / "config.json").write_text('{"model_type": "other", "dtype": "bfloat16"}')
    (folder / "adapter").mkdir()
    write_tensors(folder / "adapter/adapter_model.safetensors", adapter, "F32")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK}
    settings |= {"target_modules": ["up_proj"], "base_model_name_or_path": str(folder / "base")}
    (folder / "adapter/adapter_config.json").write_text(json.dumps(settings))


def run_child(kind: str, folder: Path) -> dict[str, float]:
    """Do one kind of reading in this process."""
    from harness.evidence.files.headers import read_weight_file
    from harness.evidence.source import CheckpointEvidence, Options
    from harness.evidence.values.rows import describe_rows
    from harness.evidence.values.scan import scan

    name = "model.safetensors"
    tensors = read_weight_file(folder / "merged" / name, name).tensors
    options = Options(base=folder / "base", adapter=folder / "adapter")
    evidence = CheckpointEvidence(folder / "merged", options)
    for known in ("merged_adapter", "weights", "base"):
        evidence.get(known)
    import harness.evidence.lineage.drift
    import harness.evidence.lineage.lineage  # noqa: F401

    started, cpu = time.perf_counter(), time.process_time()
    if kind == "scan":
        for place in ("base", "merged", "merged"):
            for found in scan(folder / place, tensors, rows=True):
                describe_rows(folder / place, found)
    else:
        modules = evidence.get("lineage").modules
        assert len(modules) == len(tensors)
        assert all(abs(one.k - 1) < 0.01 for one in modules)
        if kind == "both":
            evidence.get("drifts")
    return {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}


def measure(kind: str, folder: Path) -> dict[str, float]:
    """Return the figures of one run in a process of its own."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, __file__, "--child", kind, "--folder", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, env=env, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def report(
    runs: list[dict[str, dict[str, float]]], size_gb: float, load: float
) -> tuple[str, bool]:
    """Return the table that people read, and whether the goal is met."""
    lines = [
        "# Comparing a merge with its base and adapter",
        "",
        f"{size_gb:g} GB of bf16 each in matrices of {SIDE} x {SIDE}, rank {RANK}; {len(runs)} "
        f"interleaved runs in fresh processes. Load average before: {load:.1f} on "
        f"{os.cpu_count()} cores.",
        "",
        "| | median | best | cpu | x of the plain scan (median of pairs) | x of its cpu |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    ratios = {}
    for kind, label in KINDS.items():
        took = [run[kind]["seconds"] for run in runs]
        cpu = statistics.median(run[kind]["cpu"] for run in runs)
        wall, work = (
            statistics.median(run[kind][key] / run["scan"][key] for run in runs)
            for key in ("seconds", "cpu")
        )
        ratios[kind] = wall
        cells = [f"{statistics.median(took):.2f} s", f"{min(took):.2f} s", f"{cpu:.2f} s"]
        lines.append(f"| {label} | {' | '.join(cells)} | {wall:.2f} | {work:.2f} |")
    met = ratios["lineage"] <= GOAL
    lines += ["", f"- lineage at most {GOAL}x of the plain scan: {'met' if met else 'NOT met'}", ""]
    lines.append(f"Python {platform.python_version()}, numpy {np.__version__}.")
    return "\n".join(lines) + "\n", met


def main() -> int:
    """Run the benchmark; exit code 1 when the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--size-gb", type=float, default=1.0)
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
        write_models(folder, args.size_gb)
        runs = [{kind: measure(kind, folder) for kind in KINDS} for _ in range(args.runs)]
    text, met = report(runs, args.size_gb, load)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "lineage.md").write_text(text, encoding="utf-8")
    print(text)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
