"""Device, precision and seed: each chosen value together with the reason, which is printed."""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import dataclass

import torch

from mudpuppy import team
from mudpuppy.config import TrainingConfig
from mudpuppy.config_check import is_of_preset
from mudpuppy.env.choose import Plan, plan
from mudpuppy.env.devices import torch_facts
from mudpuppy.env.facts import Facts
from mudpuppy.env.probe import collect
from mudpuppy.errors import ConfigError, EngineError
from mudpuppy.memory.placement import list_devices, require_devices
from mudpuppy.presets.loader import settings_of
from mudpuppy.records import Choice

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.bfloat16,
}
"""torch's type for each precision; what is not a linear layer computes in bf16 beside fp8."""
PROBE_TOLERANCE = {"bf16": 0.02, "fp16": 0.005, "fp8": 0.02}
"""Relative error that a 64 x 64 product may have: about 4 units in the last place."""
TF32_VARIABLES = ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "HIPBLASLT_ALLOW_TF32")
"""Variables that switch TF32 on: in every build, and in one for ROCm only."""
FP32_TOLERANCE, TF32_TOLERANCE = 1e-4, 2e-3
"""The same for fp32, and for fp32 whose factors a GPU rounds to TF32's 10 bits (error 3e-4)."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Where and how a run computes."""

    device: torch.device
    """Device of the computation."""
    dtype: torch.dtype
    """Type of the computation, and of frozen weights."""
    choices: dict[str, Choice]
    """What was chosen and why, by name."""


def choose_runtime(config: TrainingConfig) -> Runtime:
    """Choose the device, prove that it computes in the precision, and say why.

    Raises:
        ConfigError: `device: cuda` was asked for and torch sees none, or the machine is in a trap
            that makes results wrong (`mud-puppy env`).
        EngineError: the device gives wrong results in the precision.
    """
    wanted = "cpu" if config.device_map == "cpu" else config.device
    facts = machine_facts(config)
    rank, size = team.local_rank(), team.local_size()
    chosen = plan(facts, wanted, config.device_map, rank=rank, size=size)
    device = torch.device(chosen.device)
    require_devices(config.device_map, list_devices() if device.type == "cuda" else [])
    refuse_unproven(config, device)
    switch_libraries(chosen)
    error = measure_matmul_error(device, config.precision)
    rounding = find_tf32(device) if config.precision == "fp32" else ""
    _require_exact(error, config.precision, device, rounding)
    is_emulated = device.type == "cpu" and config.precision != "fp32"
    how = "on a CPU through torch's autocast, " if is_emulated else ""
    how += f"TF32 is allowed by {rounding}, " if rounding else ""
    precision_reason = f"asked for; {how}a test product is within {error:.1e} of fp32"
    return Runtime(
        device=device,
        dtype=DTYPES[config.precision],
        choices={
            **chosen.choices,
            "precision": Choice(value=config.precision, reason=precision_reason),
            **_tell_preset(config),
        },
    )


def _tell_preset(config: TrainingConfig) -> dict[str, Choice]:
    """Return which preset the run began from, and what of it was set otherwise."""
    if config.preset is None:
        return {}
    others = [name for name in settings_of(config.preset) if not is_of_preset(name, config)]
    reason = f"asked for; set otherwise: {', '.join(others) or 'nothing'}"
    return {"preset": Choice(value=config.preset, reason=reason)}


def _require_exact(error: float, precision: str, device: torch.device, rounding: str) -> None:
    """Refuse a device whose products are wrong, and advise what was not asked for."""
    bound = PROBE_TOLERANCE.get(precision, TF32_TOLERANCE if rounding else FP32_TOLERANCE)
    if error <= bound:
        return
    other = "" if precision == "fp32" else "use --precision fp32, or "
    where = "look at mud-puppy env" if device.type == "cpu" else "--device cpu to compare"
    raise EngineError(
        f"a {precision} matrix product on {device} is off by {error:.3g} relative to "
        f"fp32, more than {bound}",
        hint=f"{other}{where}",
    )


def find_tf32(device: torch.device) -> str:
    """Return the switch that has a GPU round the factors of fp32 products to TF32; "" for none."""
    if device.type != "cuda":
        return ""
    for name in TF32_VARIABLES[: None if torch.version.hip else 1]:
        if os.environ.get(name, "0") not in ("", "0"):
            return name
    # setting allow_tf32, or the precision of all backends, shows here too
    is_on = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "torch.backends.cuda.matmul" if is_on else ""


def machine_facts(config: TrainingConfig) -> Facts:
    """Return the facts of this machine; none where only the processor is asked for."""
    return Facts() if config.device == "cpu" else collect(torch_facts())


def switch_libraries(chosen: Plan) -> None:
    """Tell torch which libraries to prefer; the environment stays as it is."""
    if chosen.prefer_rocblas:
        torch.backends.cuda.preferred_blas_library("cublas")  # in a ROCm build: rocBLAS
    if chosen.flash_off:
        torch.backends.cuda.enable_flash_sdp(False)


def refuse_unproven(config: TrainingConfig, device: torch.device) -> None:
    """Refuse what is known to be unsafe on this kind of device.

    With streaming the gradients are on the host while torch keeps the loss scale on the GPU and
    copies it over without waiting; nobody has shown yet that the host reads it in time.

    Raises:
        ConfigError: streaming by several processes, or with fp16 on a GPU.
    """
    if config.stream and team.size() > 1:
        # streamed gradients take their own way to the host, past the hooks by which DDP averages
        raise ConfigError(
            [f"--stream is for one process, and {team.size()} train together"],
            hint="start it without torchrun, or use --fsdp full_shard instead of --stream",
        )
    if device.type != "cpu" and config.stream and config.precision == "fp16":
        raise ConfigError(
            [f"--stream with --precision fp16 is not proven on {device}"],
            hint="use --precision bf16 or fp32",
        )


def measure_matmul_error(device: torch.device, precision: str) -> float:
    """Return the relative error of a matrix product in the precision, against fp32 on the CPU.

    A tensor of a type can be allocated where the type cannot compute, so the product is what counts
    (engines.md, section 4).
    """
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(64, 64, generator=generator)
    right = torch.randn(64, 64, generator=generator)
    exact = left.double() @ right.double()
    dtype = DTYPES[precision]
    product = (left.to(device, dtype) @ right.to(device, dtype)).double().cpu()
    return float((product - exact).norm() / exact.norm())


def peak_rss_bytes() -> int:
    """Return the peak resident memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_device_bytes(device: torch.device) -> int:
    """Return the peak memory that torch allocated on the device; 0 on a CPU."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else 0
