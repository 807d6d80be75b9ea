"""Facts about a machine, as frozen records with a JSON form; collecting them is `probe`'s."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mudpuppy.errors import UsageError

FACTS_SCHEMA_VERSION = 1
INTEGRATED_ARCHS = (
    *("gfx902", "gfx90c", "gfx1033", "gfx1035", "gfx1036", "gfx1103"),
    *("gfx1150", "gfx1151", "gfx1152", "gfx1153"),
)
"""Architectures that exist only beside a CPU on one chip (LLVM's AMDGPU processor table)."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """A GPU as torch sees it."""

    index: int
    """Torch's number of it, `cuda:INDEX`."""
    name: str
    """Name that the driver gives."""
    arch: str
    """`gfx1100` on AMD, `sm_89` on NVIDIA; with HSA_OVERRIDE_GFX_VERSION it is what that says."""
    total_bytes: int
    """Memory of the device."""
    driver_says_integrated: bool = False
    """Whether the driver reports that CPU and GPU share their memory."""
    compute: Mapping[str, str] = field(default_factory=dict)
    """What `--compute` found, by precision: `ok`, or what was wrong."""

    @property
    def is_integrated(self) -> bool:
        """Whether the GPU is part of a processor; drivers do not always say so."""
        return self.driver_says_integrated or self.arch in INTEGRATED_ARCHS

    @property
    def is_rdna(self) -> bool:
        """Whether it is an AMD GPU made for graphics: gfx10, gfx11 and gfx12."""
        return re.match(r"gfx1[0-2]\d\d", self.arch) is not None

    @property
    def is_cdna(self) -> bool:
        """Whether it is an AMD GPU made for computing: MI100 (gfx908) and later."""
        return self.arch.startswith(("gfx908", "gfx90a", "gfx94", "gfx95"))


@dataclass(frozen=True, kw_only=True)
class TorchFacts:
    """The installed torch, and what it sees."""

    version: str
    """Such as `2.13.0+rocm7.2`; the part after `+` is the wheel's tag."""
    hip: str | None = None
    """HIP version it was built for, where it was."""
    cuda: str | None = None
    """CUDA version it was built for, where it was."""
    archs: tuple[str, ...] = ()
    """Architectures that the wheel has kernels for."""
    devices: tuple[Device, ...] = ()
    """GPUs that torch sees."""
    error: str = ""
    """How asking torch failed; empty where it answered."""

    @property
    def number(self) -> tuple[int, ...]:
        """Major and minor version of torch."""
        return version_of(self.version)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything that the traps are judged by."""

    schema_version: int = FACTS_SCHEMA_VERSION
    """Version of this form."""
    system: str = ""
    """Operating system and kernel."""
    python: str = ""
    """Python's version."""
    torch: TorchFacts | None = None
    """The installed torch; None where there is none."""
    amd_gpus: tuple[str, ...] = ()
    """AMD GPUs of this machine, whether torch sees them or not, by their own architecture."""
    nvidia_gpus: int = 0
    """NVIDIA GPUs of this machine, whether torch sees them or not."""
    kfd: str = ""
    """State of /dev/kfd, the door to AMD GPUs: `open`, `refused`, `missing`; empty: not asked."""
    rocm: str = ""
    """Version of an installed ROCm; wheels bring their own."""
    driver: str = ""
    """Version of the amdgpu or nvidia kernel driver, where it has one of its own."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that matter here, from a fixed list."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Versions of the packages that matter here."""
    kernels: str = ""
    """What computes 4-bit layers on the processor; empty: not asked."""
    memlock_bytes: int | None = None
    """Memory that may be pinned (ulimit -l); None is no limit."""
    ram_bytes: int = 0
    """Memory of the host."""
    disk_free_bytes: int = 0
    """Free space where the command was run."""

    @property
    def devices(self) -> tuple[Device, ...]:
        """GPUs that torch sees."""
        return () if self.torch is None else self.torch.devices

    @property
    def is_hip(self) -> bool:
        """Whether torch is a ROCm build."""
        return self.torch is not None and self.torch.hip is not None

    def to_json(self) -> dict[str, Any]:
        """Return the facts as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> Facts:
        """Read what `to_json` made.

        Raises:
            UsageError: it is not of that form.
        """
        try:
            return TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise UsageError(
                f"these are no facts about a machine: {where}{': ' * bool(where)}{first['msg']}",
                hint="make them with: mud-puppy env --format json > facts.json",
            ) from None


def version_of(text: str) -> tuple[int, ...]:
    """Return major and minor number at the start of a version, or (0, 0)."""
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def arch_of_override(value: str) -> str:
    """Return the architecture that HSA_OVERRIDE_GFX_VERSION names, or an empty text.

    The last number is written in hexadecimal in the architecture's name: 9.0.10 is gfx90a.
    """
    found = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", value.strip())
    return f"gfx{int(found[1])}{int(found[2]):x}{int(found[3]):x}" if found else ""
