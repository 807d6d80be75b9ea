"""Reading every weight: the doctor's scan against `cat`, and against what people write.

Matrices of 32 MB with random bf16 values, in the cache of the system. Every run is a fresh process.
`finite, min, max` is what the default probes of files and weights need; `all statistics` adds
zeros, rms, norms of rows, zero and repeated rows. The same is read by compiled C, which a doctor
takes where there is a compiler, and by numpy, which every doctor has.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from benchmarks.children import call, command
from benchmarks.frame import Figures, Plan, Row, Sides, Subject, Work, at_least, at_most, interleave
from mudpuppy.native.builds import VARIABLE

NAME = "model.safetensors"
SIDE = 4096
DOCTOR = {
    "doctor": (),
    "doctor --select MPD301": ("--select", "MPD301"),
    "doctor --quick": ("--quick",),
    "doctor --depth files": ("--depth", "files"),
}


def write_model(folder: Path, size_gb: float) -> int:
    """Write a checkpoint of random bf16 matrices and return its bytes."""
    import numpy as np

    random = np.random.default_rng(0)
    count = max(1, round(size_gb * 1e9 / (2 * SIDE * SIDE)))
    blocks = [
        (random.standard_normal((SIDE, SIDE), np.float32) * 0.02).view(np.uint32) >> 16
        for _ in range(min(count, 4))
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
            file.write(blocks[number % len(blocks)].astype(np.uint16).tobytes())
    (folder / "config.json").write_text('{"model_type": "other", "dtype": "bfloat16"}')
    return (folder / NAME).stat().st_size


def import_scan() -> None:
    """Import what a scan needs, and compile it if nobody has."""
    import harness.evidence.files.headers
    import harness.evidence.values.rows
    import harness.evidence.values.scan  # noqa: F401
    from harness.evidence.values.compiled.choose import COMPILE_BYTES, choose

    chosen = choose(COMPILE_BYTES)
    assert chosen.kernel, chosen.why


def import_numpy_scan() -> None:
    """Import what a scan needs where there is no compiler."""
    import harness.evidence.files.headers
    import harness.evidence.values.rows
    import harness.evidence.values.scan  # noqa: F401

    os.environ[VARIABLE] = "0"


def scan_once(folder: str, has_rows: bool) -> None:
    """Scan every tensor; with or without the statistics of rows."""
    from harness.evidence.files.headers import read_weight_file
    from harness.evidence.values.rows import describe_rows
    from harness.evidence.values.scan import scan

    tensors = read_weight_file(Path(folder) / NAME, NAME).tensors
    for found in scan(Path(folder), tensors, rows=has_rows):
        assert found.extremes.nonfinite == 0
        describe_rows(Path(folder), found)


def import_torch() -> None:
    """Import what people scan with."""
    import safetensors.torch  # noqa: F401
    import torch

    torch.set_num_threads(2)


def scan_with_torch(folder: str) -> None:
    """Do what people write."""
    import torch
    from safetensors.torch import load_file

    assert all(bool(torch.isfinite(t).all()) for t in load_file(Path(folder) / NAME).values())


def measure(plan: Plan) -> Sides:
    """Run every kind in fresh processes."""
    size = write_model(plan.folder, plan.pick(full=2.0, quick=0.3))
    plan.facts["checkpoint"] = f"{size / 1e9:.2f} GB of bf16 in matrices of {SIDE} x {SIDE}"
    folder, own = str(plan.folder), "benchmarks.rows.scan"
    cache = {"PYTHONPYCACHEPREFIX": str(plan.folder / "bytecode")}  # compiled once, as installed
    python = [sys.executable, "-m", "reports.commands.doctor"]

    def doctor(*words: str) -> Work:
        return lambda: command([*python, *words], more=cache).timed

    def child(name: str, prepare: str, *arguments: object) -> Work:
        return lambda: _call(f"{own}:{name}", prepare, folder, *arguments)

    sides: dict[str, Work] = {
        "cat": lambda: command(["sh", "-c", f"cat '{folder}/{NAME}' > /dev/null"]).timed,
        "scan": child("scan_once", "import_scan", False),
        "scan in numpy": child("scan_once", "import_numpy_scan", False),
        "all statistics": child("scan_once", "import_scan", True),
        "all statistics in numpy": child("scan_once", "import_numpy_scan", True),
        "load_file + torch.isfinite": child("scan_with_torch", "import_torch"),
        "doctor --help": doctor("--help"),
        **{name: doctor(folder, *words) for name, words in DOCTOR.items()},
    }
    return interleave(plan, sides)


def _call(function: str, prepare: str, *arguments: object) -> Figures:
    return call(function, *arguments, prepare=prepare)


ALONE = "mudpuppy-doctor {}, whole process, processor seconds"
READING = (
    ("fast-vs-cat", "scan: finite, min, max", "scan", "cat", "wall", 1.3),
    ("all-vs-cat", "scan: all statistics", "all statistics", "cat", "wall", 0.5),
    (
        "fast-vs-torch",
        "scan: finite, min, max",
        "scan",
        "load_file + torch.isfinite",
        "wall; torch on two threads",
        8.0,
    ),
)
"""What is asked of a pass, whoever makes it: name, text, sides, remark and goal."""
SUBJECT = Subject(
    name="scan",
    title="Doctor: reading every weight",
    measure=measure,
    rows=(
        *(
            Row(
                name=name + suffix,
                what=f"{what}, {by} ({remark})",
                ours=ours + beside,
                against=against,
                figure="wall_s",
                goal=at_least(goal),
            )
            for suffix, beside, by in (("", "", "compiled"), ("-numpy", " in numpy", "numpy"))
            for name, what, ours, against, remark, goal in READING
        ),
        Row(
            name="memory",
            what="scan: all statistics, memory over imports, MB",
            ours="all statistics",
            against=None,
            figure="peak_mb",
            goal=at_most(200.0),
            margin=3.0,
        ),
        *(
            Row(
                name=f"start-{side.rpartition('-')[2]}",
                what=ALONE.format(side.partition(" ")[2]),
                ours=side,
                against=None,
                goal=at_most(0.35),
            )
            for side in ("doctor --depth files", "doctor --help")
        ),
        *(
            Row(
                name=f"whole-{side.rpartition('-')[2].replace(' ', '-')}",
                what=f"mudpuppy-{side.replace('doctor', 'doctor PATH', 1)}, whole process",
                ours=side,
                against="cat",
                figure="wall_s",
                goal=None,
            )
            for side in ("doctor", "doctor --select MPD301", "doctor --quick")
        ),
    ),
)
