"""One fixed matrix result with every ending, some of it hostile; it feeds every writer's test."""

from __future__ import annotations

from typing import Any

from harness.results import CellResult, MatrixResult, Outcome, WorkerExit, judge_matrix

ENVIRONMENT = {"python": "3.12.1", "platform": "Linux", "cores": 2, "git": "0123456789ab"}
NEVER_TRAINED = {
    "code": "MPD203",
    "name": "adapter-never-trained",
    "modes": ["FM08"],
    "status": "failed",
    "severity": "error",
    "message": "12 of 12 `lora_B` tensors are zero",
    "evidence": [
        {"what": "norm", "file": "adapter_model.safetensors", "tensor": f"layer.{index}.lora_B",
         "found": 0.0, "expected": "> 0"}
        for index in range(7)
    ],
    "cause": "the optimizer never stepped",
    "remedy": "train with --max-steps 1 or more",
    "reason": "",
    "subject": "checkpoint/<adapter>",
}  # fmt: skip
LOUD = {"code": "MPD601", "name": "eos-flood", "severity": "warning", "message": "it never ends"}


def _cell(number: int, name: str, title: str, outcome: Outcome, message: str, **more: Any) -> Any:
    more.setdefault("expect", {"outcome": "trained", "code": None, "findings": []})
    more.setdefault(
        "worker", WorkerExit(exit_code=0, wall_s=4.25 + number, peak_rss_bytes=512 * 2**20)
    )
    return CellResult(
        cell_id=f"{number:012x}", name=name, title=title, number=number, config={"seed": number},
        outcome=outcome, status=outcome.status, message=message, environment=ENVIRONMENT, **more,
    )  # fmt: skip


REJECTED = {"outcome": "rejected", "code": "MP-R07", "findings": []}
CELLS = (
    _cell(1, "lora", "LoRA", Outcome.PASSED, "as expected", probes={"passed": 20},
          metrics={"loss_before": 2.3125, "loss_after": 0.5}),
    _cell(2, "lora-streaming", "LoRA + streaming", Outcome.REJECTED_AS_EXPECTED,
          "rejected with MP-R07 before torch, nothing written", expect=REJECTED),
    _cell(3, "missed", "Full + streaming | <script>", Outcome.MISSED_REJECTION,
          "should be rejected with MP-R07, and it trained", expect=REJECTED),
    _cell(4, "wrong", "GPTQ + streaming", Outcome.WRONG_REJECTION,
          "rejected with MP-R01 instead of MP-R07", expect=REJECTED),
    _cell(5, "dead", "QLoRA", Outcome.FAILED, "MPD203 adapter-never-trained (and 1 more)",
          findings=(NEVER_TRAINED, LOUD), attempt=2, log_tail="step 1/8\n```\n\x1b[31mred <b>\n",
          metrics={"loss_before": 2.0, "loss_after": float("nan")}),
    _cell(6, "segfault", "Full + fp16", Outcome.CRASHED, "ended by SIGSEGV",
          worker=WorkerExit(exit_code=None, signal="SIGSEGV", wall_s=1.0, peak_rss_bytes=2**20)),
    _cell(7, "hang", "Full", Outcome.TIMEOUT, "killed at its time limit after 300.0 s",
          expect={"outcome": "trained", "findings": ["MPD202"], "stops_early": True},
          worker=WorkerExit(exit_code=None, signal="SIGTERM", timed_out=True, wall_s=300.0,
                            peak_rss_bytes=2**20)),
    _cell(8, "big", "Full + r=1024", Outcome.OUT_OF_MEMORY, "exit code 1: MemoryError"),
    _cell(9, "gpu", "LoRA on a GPU", Outcome.NOT_RUN, "needs a CUDA or ROCm device", worker=None),
    _cell(10, "later", "GPTQ", Outcome.NOT_RUN, "left out by --select lora*", worker=None),
)  # fmt: skip


def make_matrix(*numbers: int, **changes: Any) -> MatrixResult:
    """Return the matrix, or one of only these cells."""
    cells = tuple(cell for cell in CELLS if not numbers or cell.number in numbers)
    verdict, exit_code, counts = judge_matrix(cell.status for cell in cells)
    values: dict[str, Any] = {
        "name": "seed", "matrix": "scenarios/seed.yaml", "folder": "runs/seed",
        "verdict": verdict, "exit_code": exit_code, "counts": counts, "cells": cells,
        "environment": ENVIRONMENT, "started": "2026-02-01T10:00:00+00:00",
        "finished": "2026-02-01T10:05:00+00:00", **changes,
    }  # fmt: skip
    return MatrixResult(**values)
