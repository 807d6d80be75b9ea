"""Time and peak memory of the loss: full logits, TRL's tiles, and our chunks of tokens."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from trl.kernels import ChunkedLogProbFunction

from benchmarks.rounds import Run, compare, interleave
from mudpuppy.chunked_loss import chunked_cross_entropy


def peak_bytes(work: Callable[[], object]) -> int:
    """Return by how much the resident memory of this process grew at its highest (Linux)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    work()
    return max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def bench_loss(rounds: int) -> dict[str, Any]:
    """Compare ways to compute the loss of a large vocabulary, with 60% of the labels masked."""
    tokens, vocabulary, width, masked = 2048, 32_768, 256, 0.6
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, requires_grad=True)
    weight = (torch.randn(vocabulary, width) * 0.05).requires_grad_()
    labels = torch.randint(vocabulary, (tokens,))
    labels[torch.rand(tokens) < masked] = -100

    def full() -> torch.Tensor:
        return F.cross_entropy(F.linear(hidden, weight), labels, reduction="sum")

    def trl() -> torch.Tensor:
        scored = ChunkedLogProbFunction.apply(
            hidden,
            weight,
            None,
            labels.clamp(min=0),
            1.0,
            32_768,
            None,
            1.0,
            ("entropy", "is_top1"),
        )
        return -scored[0].masked_fill(labels == -100, 0.0).sum()

    def chunked() -> torch.Tensor:
        return chunked_cross_entropy(hidden, weight, labels)

    peaks: dict[str, int] = {}

    def timed(name: str, loss: Callable[[], torch.Tensor]) -> Callable[[], Run]:
        def run() -> Run:
            wall, cpu = -time.perf_counter(), -time.process_time()
            value: list[float] = []

            def work() -> None:
                total = loss()
                total.backward()
                value.append(float(total.detach()))

            peaks[name] = max(peaks.get(name, 0), peak_bytes(work))
            hidden.grad = None
            weight.grad = torch.zeros_like(weight)  # as it is after the first batch
            return Run(wall + time.perf_counter(), cpu + time.process_time(), value)

        return run

    losses = {"full logits": full, "trl": trl, "chunked": chunked}
    runs = interleave({name: timed(name, loss) for name, loss in losses.items()}, rounds + 1)
    runs = {name: some[1:] for name, some in runs.items()}
    reference = runs["full logits"][0].losses[0]
    return {
        "tokens": tokens,
        "vocabulary": vocabulary,
        "masked": masked,
        "seconds": {name: min(run.wall_s for run in some) for name, some in runs.items()},
        "peak_mb": {name: peak / 1e6 for name, peak in peaks.items()},
        "ratios": {
            "chunked / full logits": compare(runs["chunked"], runs["full logits"]),
            "chunked / TRL": compare(runs["chunked"], runs["trl"]),
        },
        "largest_relative_loss_difference": {
            name: max(abs(run.losses[0] - reference) / reference for run in some)
            for name, some in runs.items()
        },
    }
