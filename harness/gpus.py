"""Which GPU runs which cell: one cell per GPU, and none on a GPU that did not give its memory back.

Memory is read from the kernel or by `nvidia-smi`, never through torch: the runner opens no device.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.matrix import Cell
from harness.needs import count_gpus, needs_of
from mudpuppy.errors import UsageError

VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
"""Variables that name the devices of a worker; they are read at its first call of the driver."""
TOLERANCE_BYTES = 64 * 2**20
"""What a device may hold more than before a cell without being called leaky."""
SETTLE_S = 5.0
"""Seconds that a driver may take to free the memory of a process that has ended."""
ASK_S = 10.0
"""Seconds that `nvidia-smi` has to answer."""

ReadUsed = Callable[[str], int | None]
"""Returns the bytes in use on a device, or None where nobody tells."""


@dataclass
class GpuSlots:
    """The GPUs of a run; each is free, in use, or set aside."""

    names: Sequence[str]
    """Devices as the driver numbers them."""
    read_used: ReadUsed
    """Tells how much of a device's memory is in use."""
    settle_s: float = SETTLE_S
    """Seconds that the memory of an ended cell may take to come back."""
    set_aside: dict[str, str] = field(default_factory=dict)
    """Devices that no cell gets any more, with the reason."""
    _in_use: set[str] = field(default_factory=set)
    _before: dict[str, int | None] = field(default_factory=dict)

    def is_free(self, number: int) -> bool:
        """Whether so many devices are free at the moment."""
        return len(self._free()) >= number

    def take(self, number: int) -> tuple[str, ...]:
        """Return so many free devices, which are in use from now on."""
        chosen = tuple(self._free()[:number])
        for one in chosen:
            self._in_use.add(one)
            self._before.setdefault(one, self.read_used(one))
        return chosen

    def give_back(self, devices: Collection[str]) -> str:
        """Take back the devices of a cell that has ended.

        Returns:
            What is wrong with one that was set aside; empty when all are as they were.
        """
        problems = [problem for one in devices if (problem := self._look_at(one))]
        self._in_use.difference_update(devices)
        return "; ".join(problems)

    def can_ever_run(self, number: int) -> bool:
        """Whether so many devices may become free."""
        return len(self.names) - len(self.set_aside) >= number

    def _free(self) -> list[str]:
        return [one for one in self.names if one not in self._in_use | self.set_aside.keys()]

    def _look_at(self, device: str) -> str:
        """Set a device aside whose memory stays in use, and say so."""
        before = self._before[device]
        if before is None:
            return ""
        end = time.monotonic() + self.settle_s
        while (used := self.read_used(device)) is not None and used > before + TOLERANCE_BYTES:
            if time.monotonic() > end:
                more = (used - before) / 2**20
                self.set_aside[device] = f"GPU {device} still holds {more:.0f} MiB more than before"
                return self.set_aside[device]
            time.sleep(0.05)
        return ""


def find_slots(word: str) -> GpuSlots | None:
    """Return the GPUs that were asked for: numbers with commas, or `auto` for all there are.

    Returns:
        None where there is none and none was named.

    Raises:
        UsageError: it is neither, or a device is named twice.
    """
    if word == "auto":
        names = [str(index) for index in range(count_gpus()[0])]
    else:
        names = [one.strip() for one in word.split(",")]
        if not all(one.isdecimal() for one in names) or len(set(names)) < len(names):
            raise UsageError(
                f"--gpus {word}: expected different numbers with commas, or auto",
                hint="--gpus 0,1",
            )
    return GpuSlots(names, read_used_bytes) if names else None


def gpus_wanted(cell: Cell) -> int:
    """Return how many GPUs a cell must have to itself; a rejection is spoken without any."""
    if cell.expect.outcome == "rejected" or cell.config.get("device") == "cpu":
        return 0
    return 2 if "two-gpus" in needs_of(cell) else 1


def read_used_bytes(device: str, root: Path = Path("/")) -> int | None:
    """Return the memory in use on a device, from the AMD driver's files or from `nvidia-smi`."""
    cards = sorted(
        (root / "sys/class/drm").glob("card*/device/mem_info_vram_used"),
        key=lambda path: path.parent.resolve().name,  # by PCI address, as HIP numbers them
    )
    if device.isdecimal() and int(device) < len(cards):
        try:
            return int(cards[int(device)].read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
    return _ask_nvidia_smi(device) if root == Path("/") else None


def _ask_nvidia_smi(device: str) -> int | None:
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    words = [command, "-i", device, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=ASK_S)
        return int(done.stdout.strip()) * 2**20 if done.returncode == 0 else None
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
