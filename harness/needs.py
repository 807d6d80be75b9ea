"""What cells need of the machine, and what this one has: found without torch, before anything runs.

A cell whose need is not met is *not run*, with the reason; it never fails for it, and never passes.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from harness.matrix import Cell
from harness.selection import Selection
from mudpuppy.env.probe import find_amd_gpus

HIDING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
"""Variables that name the devices a process may see; an empty one hides them all."""
ASK_S = 10.0
"""Seconds that `nvidia-smi` has to answer."""
NEEDS = {
    "gpu": "a GPU",
    "two-gpus": "two GPUs",
    "network": "the network (allow it with --allow network)",
    "root": "root",
    "compiler": "a C++ compiler or Triton",
    "two-processes": "two GPUs, or none: a process each, or both on the CPU",
}
"""Every need and what it asks for. The first four are those of scenario files."""
BY_SETTING = (
    ("device", ("cuda",), "gpu"),
    ("compile", (True,), "compiler"),
    ("fsdp", ("full_shard",), "two-processes"),
)
"""Settings that need something by themselves: name, values, need."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What there is."""

    gpus: int = 0
    """GPUs that a worker can open."""
    has: frozenset[str] = frozenset()
    """Needs that are met, beside those of GPUs."""
    remark: str = ""
    """Why there are fewer GPUs than a person may think."""

    def lacks(self, cell: Cell) -> str:
        """Return what the cell needs and the machine does not have; empty when it can run."""
        missing = [name for name in needs_of(cell) if not self._meets(name)]
        if not missing:
            return ""
        remark = f" ({self.remark})" if self.remark and "gpu" in missing[0] else ""
        return "needs " + " and ".join(NEEDS[name] for name in missing) + remark

    def _meets(self, name: str) -> bool:
        if name in ("gpu", "two-gpus"):
            return self.gpus >= (1 if name == "gpu" else 2)
        if name == "two-processes":
            return self.gpus != 1
        return name in self.has


def needs_of(cell: Cell) -> tuple[str, ...]:
    """Return the needs of a cell: those it states, and those of its settings.

    A rejection is spoken before anything is needed.
    """
    if cell.expect.outcome == "rejected":
        return cell.needs
    found = [need for name, values, need in BY_SETTING if cell.config.get(name) in values]
    return tuple(dict.fromkeys([*cell.needs, *found]))


def leave_out_unmet(selection: Selection, machine: Machine) -> Selection:
    """Move the cells that cannot run on the machine to those left out, with the reason."""
    reasons = [(cell, machine.lacks(cell)) for cell in selection.chosen]
    return Selection(
        chosen=tuple(cell for cell, why in reasons if not why),
        left_out=(*selection.left_out, *((cell, why) for cell, why in reasons if why)),
    )


def look_at_machine(allowed: Collection[str] = (), *, wanted: Iterable[Cell] = ()) -> Machine:
    """Return what this machine has.

    Args:
        allowed: what a person allowed, such as `network`; it is not tried.
        wanted: the cells; a driver is asked for its GPUs only when one of them needs a GPU.
    """
    has = set(allowed)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        has.add("root")
    if shutil.which("g++") or shutil.which("c++") or importlib.util.find_spec("triton"):
        has.add("compiler")
    gpus, remark = 0, ""
    if any("gpu" in need for cell in wanted for need in needs_of(cell)):
        gpus, remark = count_gpus()
    return Machine(gpus=gpus, has=frozenset(has), remark=remark)


def count_gpus(
    root: Path = Path("/"), environment: Mapping[str, str] = os.environ
) -> tuple[int, str]:
    """Return how many GPUs a worker could open, and why it may be fewer than there are.

    The kernel is asked and not torch, whose question would make every later fork unusable.

    Args:
        root: what /dev, /proc and /sys are looked for in.
        environment: variables that may hide devices.
    """
    amd = [arch for arch in find_amd_gpus(root) if arch != "unknown"]
    if amd and not os.access(root / "dev/kfd", os.R_OK | os.W_OK):
        return 0, f"{len(amd)} AMD, but /dev/kfd cannot be opened"
    count = len(amd) or _count_nvidia(root)
    build = _torch_version()
    if count and build.endswith("+cpu"):
        return 0, f"there is one, but torch {build} is built without"
    for name in HIDING:
        if name in environment:
            shown = [one for one in environment[name].split(",") if one.strip() not in ("", "-1")]
            if len(shown) < count:
                return len(shown), f"{name} hides {count - len(shown)}"
    return count, ""


def _count_nvidia(root: Path) -> int:
    """Return the NVIDIA GPUs that the driver shows; under WSL only `nvidia-smi` knows them."""
    shown = list((root / "proc/driver/nvidia/gpus").glob("*"))
    if shown or root != Path("/"):
        return len(shown)
    return _ask_nvidia_smi()


@cache
def _ask_nvidia_smi() -> int:
    command = shutil.which("nvidia-smi")
    if command is None:
        return 0
    try:
        done = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=ASK_S)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())


def _torch_version() -> str:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""
