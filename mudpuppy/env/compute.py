"""Compute a little on each GPU, in a process of its own, and compare it with the processor."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace

from mudpuppy.env.facts import Device, Facts

TIMEOUT_S = 300
"""Time for one device; a library that compiles its kernels first takes minutes."""
ATTENTION_TOLERANCE = 0.02
"""Relative error that attention in bf16 may have."""


def compute_on_devices(facts: Facts) -> Facts:
    """Return the facts with what every device computed; a crash is a result as well."""
    if facts.torch is None:
        return facts
    devices = tuple(replace(one, compute=compute_apart(one)) for one in facts.devices)
    return replace(facts, torch=replace(facts.torch, devices=devices))


def compute_apart(device: Device) -> dict[str, str]:
    """Return what a process of its own computed on the device, by precision."""
    command = [sys.executable, "-m", "mudpuppy.env.compute", f"cuda:{device.index}"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return {"all": f"no result within {TIMEOUT_S} s"}
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        return {"all": f"crashed with exit code {done.returncode}: {last}"}
    results: dict[str, str] = json.loads(done.stdout.rpartition("\n")[2])
    return results


def compute_on(name: str) -> dict[str, str]:
    """Return by precision `ok` or the error of a product, and of attention in bf16."""
    import torch

    from mudpuppy.runtime import PROBE_TOLERANCE, measure_matmul_error

    device = torch.device(name)
    results = {}
    for precision in ("fp32", "bf16", "fp16"):
        error = measure_matmul_error(device, precision)
        bound = PROBE_TOLERANCE.get(precision, 1e-4)
        results[precision] = "ok" if error <= bound else f"a product is off by {error:.2g}"
    error = measure_attention_error(name)
    wrong = f"attention is off by {error:.2g}"
    results["bf16 attention"] = "ok" if error <= ATTENTION_TOLERANCE else wrong
    return results


def measure_attention_error(name: str) -> float:
    """Return the relative error of causal attention in bf16, against fp64 on the processor."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 128, 64, generator=generator).bfloat16() for _ in range(3))
    exact = scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=True)
    found = scaled_dot_product_attention(q.to(name), k.to(name), v.to(name), is_causal=True)
    error = float((found.double().cpu() - exact).norm() / exact.norm())
    return float("inf") if math.isnan(error) else error


if __name__ == "__main__":
    json.dump(compute_on(sys.argv[1]), sys.stdout)
