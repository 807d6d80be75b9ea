"""Ask torch what it was built for and which GPUs it sees; nothing is computed on them."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import torch

from mudpuppy.env.facts import Device, TorchFacts


def torch_facts() -> TorchFacts:
    """Return what torch says of itself and its devices.

    A driver that fails is told in `error`: it must not end the command that is to explain it.
    """
    version = torch.__version__
    try:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        devices = tuple(_describe(index) for index in range(count))
        archs = tuple(torch.cuda.get_arch_list())
    except RuntimeError as problem:
        error = str(problem).partition("\n")[0]
        return TorchFacts(
            version=version, hip=torch.version.hip, cuda=torch.version.cuda, error=error
        )
    return TorchFacts(
        version=version,
        hip=torch.version.hip,
        cuda=torch.version.cuda,
        archs=archs,
        devices=devices,
    )


def _describe(index: int) -> Device:
    """Return the properties of one device."""
    seen: Any = torch.cuda.get_device_properties(index)
    arch = str(getattr(seen, "gcnArchName", "")) if torch.version.hip else ""
    return Device(
        index=index,
        name=str(seen.name),
        arch=arch.partition(":")[0] or f"sm_{seen.major}{seen.minor}",
        total_bytes=int(seen.total_memory),
        driver_says_integrated=bool(getattr(seen, "is_integrated", False)),
    )


if __name__ == "__main__":
    json.dump(dataclasses.asdict(torch_facts()), sys.stdout)
