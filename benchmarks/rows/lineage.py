"""Comparing a merge with its base and adapter, against a plain scan of three such checkpoints.

Base and merge are bf16 matrices of 32 MB, the adapter has rank 16 on all of them. Every run is a
fresh process.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.children import call
from benchmarks.frame import Plan, Row, Sides, Subject, at_most, interleave

if TYPE_CHECKING:
    import numpy as np

SIDE, RANK = 4096, 16
NAME = "model.safetensors"


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
    import ml_dtypes
    import numpy as np

    random = np.random.default_rng(0)
    count = max(1, round(size_gb * 1e9 / 2 / SIDE**2))
    modules = [f"model.layers.{number}.mlp.up_proj" for number in range(count)]
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
        write_tensors(folder / name / NAME, tensors, "BF16")
        (folder / name / "config.json").write_text('{"model_type": "other", "dtype": "bfloat16"}')
    (folder / "adapter").mkdir()
    write_tensors(folder / "adapter/adapter_model.safetensors", adapter, "F32")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK}
    settings |= {"target_modules": ["up_proj"], "base_model_name_or_path": str(folder / "base")}
    (folder / "adapter/adapter_config.json").write_text(json.dumps(settings))


def import_lineage() -> None:
    """Import what either way needs."""
    import harness.evidence.files.headers
    import harness.evidence.lineage.drift
    import harness.evidence.lineage.lineage
    import harness.evidence.source
    import harness.evidence.values.rows
    import harness.evidence.values.scan  # noqa: F401


def scan_three(folder: str) -> None:
    """Scan three checkpoints with all statistics."""
    from harness.evidence.files.headers import read_weight_file
    from harness.evidence.values.rows import describe_rows
    from harness.evidence.values.scan import scan

    tensors = read_weight_file(Path(folder) / "merged" / NAME, NAME).tensors
    for place in ("base", "merged", "merged"):
        for found in scan(Path(folder) / place, tensors, rows=True):
            describe_rows(Path(folder) / place, found)


def compare(folder: str, has_drifts: bool) -> None:
    """Find k and residual of every module; with the drift of every tensor or without."""
    from harness.evidence.source import CheckpointEvidence, Options

    options = Options(base=Path(folder) / "base", adapter=Path(folder) / "adapter")
    evidence = CheckpointEvidence(Path(folder) / "merged", options)
    modules = evidence.get("lineage").modules
    assert modules
    assert all(abs(one.k - 1) < 0.01 for one in modules)
    if has_drifts:
        evidence.get("drifts")


def measure(plan: Plan) -> Sides:
    """Run every kind in fresh processes."""
    size = plan.pick(full=1.0, quick=0.1)
    write_models(plan.folder, size)
    plan.facts["checkpoints"] = f"{size:g} GB of bf16 each, rank {RANK}"
    folder, own = str(plan.folder), "benchmarks.rows.lineage"

    def child(name: str, *more: object) -> dict[str, float]:
        return call(f"{own}:{name}", folder, *more, prepare="import_lineage")

    return interleave(
        plan,
        {
            "three scans": lambda: child("scan_three"),
            "lineage": lambda: child("compare", False),
            "lineage and drifts": lambda: child("compare", True),
        },
    )


SUBJECT = Subject(
    name="lineage",
    title="Doctor: a merge held against its base and adapter",
    measure=measure,
    in_quick=False,
    rows=(
        Row(
            name="lineage",
            what="k and residual of every module (wall)",
            ours="lineage",
            against="three scans",
            figure="wall_s",
            goal=at_most(2.5),
        ),
        Row(
            name="drifts",
            what="and the drift of every tensor (wall)",
            ours="lineage and drifts",
            against="three scans",
            figure="wall_s",
            goal=None,
        ),
    ),
)
