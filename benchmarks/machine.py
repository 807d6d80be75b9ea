"""What measured: the machine in words, the versions of everything, and how busy it is."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    *("torch", "transformers", "peft", "trl", "safetensors", "numpy"),
    *("bitsandbytes", "gptqmodel", "triton", "gguf"),
)
MARKS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
"""Abilities of a processor that decide which of two ways is faster."""


def describe_machine() -> dict[str, Any]:
    """Return what a reader must know to judge a time."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def package_versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def load_average() -> float:
    """Return how many processes wanted to run in the last minute."""
    return round(os.getloadavg()[0], 2)


def _processor() -> str:
    """Return the abilities of the processor that matter here; they stand for its kind."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = (line.partition(":") for line in text.splitlines())
    known = {key.strip(): value.strip() for key, _, value in lines}
    words = (known.get("flags") or known.get("Features") or "").split()
    marks = " ".join(mark for mark in MARKS if mark in words)
    name = known.get("model name") or platform.machine()
    return f"{name} ({marks})" if marks else name
