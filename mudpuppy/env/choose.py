"""Choose device, BLAS library, attention and allocator by the facts, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass, field

from mudpuppy.env.facts import Device, Facts
from mudpuppy.env.traps import judge, refuse_device_map
from mudpuppy.env.traps_install import discrete_numbers, integrated_beside_discrete
from mudpuppy.env.traps_kernels import allocator_settings, flash_is_unsafe, lt_choice
from mudpuppy.errors import ConfigError
from mudpuppy.records import Choice

REFUSED = ("MP-T04", "MP-T07", "MP-T08", "MP-T11")
"""Traps that no run on a GPU is begun in, where they block."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to compute on a machine."""

    device: str
    """Torch's name of the device: `cuda:0` or `cpu`."""
    prefer_rocblas: bool = False
    """Whether torch is told to prefer rocBLAS to hipBLASLt."""
    flash_off: bool = False
    """Whether torch's flash attention is switched off."""
    choices: dict[str, Choice] = field(default_factory=dict)
    """What was chosen and why, by name."""


def plan(
    facts: Facts, wanted: str, device_map: str | None = None, *, rank: int = 0, size: int = 1
) -> Plan:
    """Return how to compute; nothing is switched by this.

    Args:
        facts: the machine.
        wanted: the setting `device`: auto, cpu or cuda.
        device_map: the setting of that name.
        rank: the number of this process on this machine, which computes on the GPU of that number.
        size: processes on this machine that train together.

    Raises:
        ConfigError: a GPU was asked for and torch sees none, there are fewer than processes, that
            of any process is integrated, the model would be spread over an integrated one, or a
            trap makes results wrong.
    """
    if wanted == "cpu":
        return _on_cpu("asked for")
    if not facts.devices:
        if wanted == "cuda":
            raise _no_gpu(facts)
        return _on_cpu(_why_no_gpu(facts))
    _refuse(facts, device_map, size)
    device = facts.devices[rank]
    name = f"cuda:{rank}"
    choices = {
        "device": Choice(value=name, reason=_why_device(facts, device, size)),
        "allocator": _allocator(facts),
    }
    own_blas, flash_off = lt_choice(facts), facts.is_hip and flash_is_unsafe(device)
    prefer_rocblas = facts.is_hip and device.is_rdna and not own_blas
    if prefer_rocblas:
        reason = f"{device.arch} is RDNA, where hipBLASLt has no fallback kernels (MP-T15)"
        choices["blas"] = Choice(value="rocBLAS", reason=reason)
    elif facts.is_hip and own_blas:
        reason = f"{own_blas}={facts.variables[own_blas]} is set"
        choices["blas"] = Choice(value="as the environment says", reason=reason)
    if flash_off:
        reason = f"bf16 flash attention gave NaN on {device.arch} (MP-T16)"
        choices["attention"] = Choice(value="without flash", reason=reason)
    warned = [one.code for one in judge(facts) if one.severity != "note"]
    if warned:
        choices["machine"] = Choice(value=", ".join(warned), reason="mud-puppy env explains them")
    return Plan(device=name, prefer_rocblas=prefer_rocblas, flash_off=flash_off, choices=choices)


def _on_cpu(reason: str) -> Plan:
    return Plan(device="cpu", choices={"device": Choice(value="cpu", reason=reason)})


def _why_no_gpu(facts: Facts) -> str:
    """Return why there is no GPU, with the trap that hides one where that is known."""
    version = "torch" if facts.torch is None else f"torch {facts.torch.version}"
    found = [f"{one.code}: {one.what}" for one in judge(facts) if one.severity == "blocks"]
    return f"{version} sees no GPU" + (f"; {found[0]}; mud-puppy env says more" if found else "")


def _no_gpu(facts: Facts) -> ConfigError:
    return ConfigError(
        [f"--device cuda: {_why_no_gpu(facts)}"],
        hint="mud-puppy env   # shows what this torch was built for and what hides the GPU; the "
        "README says how to bring a ROCm or CUDA build",
    )


def _refuse(facts: Facts, device_map: str | None, size: int) -> None:
    """Refuse what would crash or compute wrongly, all problems at once."""
    refuse_device_map(facts, device_map)
    # transformers' trainers compute on the GPU with the number of the process and no other
    integrated = [one for one in facts.devices[:size] if one in integrated_beside_discrete(facts)]
    if integrated:
        rest = discrete_numbers(facts)
        start = f"torchrun --nproc_per_node {len(rest)} -m mudpuppy" if size > 1 else "mud-puppy"
        raise ConfigError(
            [
                f"MP-T05: cuda:{one.index} is {one.name} ({one.arch}), which is part of the "
                "processor"
                for one in integrated
            ],
            hint=f"HIP_VISIBLE_DEVICES={','.join(rest)} {start} ...   # or --device cpu",
        )
    if size > len(facts.devices):
        seen = len(facts.devices)
        raise ConfigError(
            [f"{size} processes train together here, and torch sees {seen} GPUs"],
            hint=f"torchrun --nproc_per_node {seen} -m mudpuppy ...   # or --device cpu",
        )
    found = [one for one in judge(facts) if one.code in REFUSED and one.severity == "blocks"]
    if found:
        raise ConfigError(
            [f"{one.code}: {one.what}. {one.why}" for one in found],
            hint="; ".join(one.do for one in found),
        )


def _why_device(facts: Facts, device: Device, size: int) -> str:
    torch = facts.torch
    if torch is None:  # there are devices, so there is a torch
        return device.name
    build = f"ROCm {torch.hip}" if torch.hip else f"CUDA {torch.cuda}"
    reason = f"torch sees {device.name} ({device.arch}) with {build}"
    passed = integrated_beside_discrete(facts)
    if passed:
        names = ", ".join(f"cuda:{one.index} ({one.arch})" for one in passed)
        reason += f"; {names} is integrated and passed over (MP-T05)"
    if size > 1:
        return f"{reason}; each of {size} processes has its own"
    others = len(facts.devices) - len(passed) - 1
    return reason + (f"; the first of {others + 1}" if others else "")


def _allocator(facts: Facts) -> Choice:
    name, _ = allocator_settings(facts)
    if name:
        return Choice(value=facts.variables[name], reason=f"{name} is set, and is left as it is")
    return Choice(value="torch's defaults", reason="no allocator variable is set, and none needed")
