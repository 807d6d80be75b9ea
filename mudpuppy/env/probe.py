"""Collect the facts of this machine; torch is asked in a process of its own, which may crash."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from mudpuppy.env.facts import Facts, TorchFacts
from mudpuppy.quant.kernels.compiler import describe_kernel

VARIABLES = (
    *("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"),
    *("HSA_OVERRIDE_GFX_VERSION", *(f"HSA_OVERRIDE_GFX_VERSION_{n}" for n in range(4))),
    *("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"),
    *("PYTORCH_NO_HIP_MEMORY_CACHING", "PYTORCH_NO_CUDA_MEMORY_CACHING"),
    *("TORCH_BLAS_PREFER_HIPBLASLT", "TORCH_BLAS_PREFER_CUBLASLT", "DISABLE_ADDMM_HIP_LT"),
    *("HIPBLASLT_ALLOW_TF32", "PYTORCH_TUNABLEOP_ENABLED"),
    "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL",
    *("AMD_SERIALIZE_KERNEL", "AMD_SERIALIZE_COPY", "HIP_LAUNCH_BLOCKING", "CUDA_LAUNCH_BLOCKING"),
    *("HSA_ENABLE_SDMA", "HSA_XNACK", "BNB_CUDA_VERSION", "ROCM_PATH", "OMP_NUM_THREADS"),
    "MUDPUPPY_KERNELS",
)
"""Variables that are recorded; no other one is ever read into the facts."""
PACKAGES = (
    *("transformers", "peft", "trl", "accelerate", "bitsandbytes", "triton", "pytorch-triton-rocm"),
    *("flash-attn", "xformers", "torchvision", "deepspeed"),
)
"""Packages whose versions are recorded."""
AMD_VENDOR, NVIDIA_VENDOR = "0x1002", "0x10de"
TORCH_TIMEOUT_S = 120
"""Time that torch has to answer; its first import from a cold disk takes long."""


def collect(torch: TorchFacts | None = None, root: Path = Path("/")) -> Facts:
    """Return the facts of this machine.

    Args:
        torch: what torch says, where it was asked already; otherwise a child process asks it.
        root: what /sys, /dev and /opt are looked for in.
    """
    return Facts(
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        torch=ask_torch() if torch is None else torch,
        amd_gpus=find_amd_gpus(root),
        nvidia_gpus=_count_cards(root, NVIDIA_VENDOR),
        kfd=_state_of_kfd(root / "dev/kfd"),
        rocm=_first_line(root / "opt/rocm/.info/version"),
        driver=_first_line(root / "sys/module/amdgpu/version")
        or _first_line(root / "sys/module/nvidia/version"),
        variables=chosen_variables(os.environ),
        packages=find_versions(PACKAGES),
        kernels=describe_kernel(),
        memlock_bytes=_memlock(),
        ram_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        disk_free_bytes=shutil.disk_usage(Path.cwd()).free,
    )


def ask_torch() -> TorchFacts | None:
    """Return what torch says in a process of its own: a broken driver takes it down, not us."""
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None
    command = [sys.executable, "-m", "mudpuppy.env.devices"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TORCH_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return TorchFacts(version=version, error=f"no answer within {TORCH_TIMEOUT_S} s")
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        died = f"signal {-done.returncode}" if done.returncode < 0 else f"exit {done.returncode}"
        return TorchFacts(version=version, error=f"the process ended with {died}: {last}")
    facts = Facts.from_json({"torch": json.loads(done.stdout.rpartition("\n")[2])})
    return facts.torch


def chosen_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the list that are set, with the home folder written as `~`."""
    home = str(Path.home())
    return {
        name: environment[name].replace(home, "~") if len(home) > 1 else environment[name]
        for name in VARIABLES
        if name in environment
    }


def find_amd_gpus(root: Path = Path("/")) -> tuple[str, ...]:
    """Return the architectures of the AMD GPUs, as the kernel knows them.

    The kernel does not know of HSA_OVERRIDE_GFX_VERSION, so this is what the chips really are.
    Where the compute driver is not loaded, a card is only known to be one of AMD's.
    """
    nodes = sorted((root / "sys/class/kfd/kfd/topology/nodes").glob("*/properties"))
    found = [arch for node in nodes if (arch := _arch_of_node(node))]
    return tuple(found) or ("unknown",) * _count_cards(root, AMD_VENDOR)


def _arch_of_node(properties: Path) -> str:
    """Return the architecture of a node of the compute driver; processors have none."""
    for line in _text(properties).splitlines():
        name, _, value = line.partition(" ")
        if name == "gfx_target_version" and value.strip().isdigit() and int(value):
            number = int(value)
            return f"gfx{number // 10000}{number // 100 % 100:x}{number % 100:x}"
    return ""


def _count_cards(root: Path, vendor: str) -> int:
    """Return the number of PCI devices of a vendor that are display controllers or accelerators."""
    count = 0
    for device in (root / "sys/bus/pci/devices").glob("*"):
        kind = _first_line(device / "class")
        # 0x03: display controllers; 0x12: processing accelerators, which Instinct cards are
        if kind.startswith(("0x03", "0x12")) and _first_line(device / "vendor") == vendor:
            count += 1
    return count


def _state_of_kfd(path: Path) -> str:
    """Return whether AMD GPUs can be opened for computing."""
    if not path.exists():
        return "missing"
    return "open" if os.access(path, os.R_OK | os.W_OK) else "refused"


def _first_line(path: Path) -> str:
    return _text(path).partition("\n")[0].strip()


def _text(path: Path) -> str:
    """Return a file of the system's, or nothing where there is none or it may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def find_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _memlock() -> int | None:
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if limit == resource.RLIM_INFINITY else limit
