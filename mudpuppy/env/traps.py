"""All traps in one table, and the judging of recorded facts by it; torch is not imported."""

from __future__ import annotations

from mudpuppy.env import traps_install, traps_kernels
from mudpuppy.env.facts import Facts
from mudpuppy.env.judged import EnvFinding, Severity, Trap
from mudpuppy.env.traps_install import discrete_numbers, integrated_beside_discrete
from mudpuppy.errors import ConfigError

TRAPS: tuple[Trap, ...] = tuple(
    sorted((*traps_install.TRAPS, *traps_kernels.TRAPS), key=lambda trap: trap.code)
)
"""Every trap, by code."""
ORDER: tuple[Severity, ...] = ("blocks", "warns", "note")
"""Severities, the worst first."""


def judge(facts: Facts) -> tuple[EnvFinding, ...]:
    """Return the traps that the machine is in, the worst first."""
    found = [
        EnvFinding(
            code=trap.code,
            name=trap.name,
            severity=said.severity,
            what=said.what,
            why=trap.why,
            sources=trap.sources,
            do=said.do,
        )
        for trap in TRAPS
        if (said := trap.judge(facts)) is not None
    ]
    return tuple(sorted(found, key=lambda one: ORDER.index(one.severity)))


def refuse_device_map(facts: Facts, device_map: str | None) -> None:
    """Refuse to spread a model over devices of which one is known to crash.

    Raises:
        ConfigError: `device_map` is auto or pipeline, and an integrated GPU is visible.
    """
    integrated = integrated_beside_discrete(facts)
    if device_map not in ("auto", "pipeline") or not integrated:
        return
    names = ", ".join(f"cuda:{one.index} {one.name} ({one.arch})" for one in integrated)
    rest = ",".join(discrete_numbers(facts))
    raise ConfigError(
        [
            f"MP-T06: --device-map {device_map} would use {names}, which is part of the processor "
            "and crashes on basic operations (seed 000)"
        ],
        hint=f"HIP_VISIBLE_DEVICES={rest} mud-puppy ...",
    )


def fp8_support(facts: Facts, index: int = 0) -> tuple[str, str]:
    """Return `hardware` or `emulated` for fp8 on a device, and why.

    MI300 has the FNUZ formats, MI350 and RDNA4 those of the OCP standard, NVIDIA units since sm_89
    (AMD's and NVIDIA's architecture tables; the engine also proves a product before it believes).
    """
    device = next((one for one in facts.devices if one.index == index), None)
    if device is None:
        return "emulated", "there is no GPU"
    return fp8_of_arch(device.arch)


def fp8_of_arch(arch: str) -> tuple[str, str]:
    """Return `hardware` or `emulated` for an architecture such as `gfx1201` or `sm_89`, and why."""
    if arch.startswith("gfx94"):
        return "hardware", f"{arch} multiplies E4M3 FNUZ"
    if arch.startswith(("gfx950", "gfx12")):
        return "hardware", f"{arch} multiplies E4M3 (OCP)"
    if arch.startswith("sm_") and int(arch[3:]) >= 89:
        return "hardware", f"{arch} multiplies E4M3"
    return "emulated", f"{arch} has no fp8 units"
