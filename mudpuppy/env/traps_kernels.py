"""Traps of allocator and kernels: settings and libraries that give faults, NaN or zeros."""

from __future__ import annotations

from mudpuppy.env.facts import Device, Facts, version_of
from mudpuppy.env.judged import Judgement, Trap, blocks, notes, warns

ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""The first that is set is the one a ROCm build reads (c10/cuda/CUDAAllocatorConfig.h)."""
PREFER_LT = ("TORCH_BLAS_PREFER_HIPBLASLT", "TORCH_BLAS_PREFER_CUBLASLT")
"""Two names of one switch."""
SLOW_SWITCHES = (
    *("AMD_SERIALIZE_KERNEL", "AMD_SERIALIZE_COPY"),
    *("HIP_LAUNCH_BLOCKING", "CUDA_LAUNCH_BLOCKING"),
)
"""Switches that wait after every launch."""


def allocator_settings(facts: Facts) -> tuple[str, dict[str, str]]:
    """Return the variable that the allocator reads, and the settings in it."""
    for name in ALLOCATOR:
        if name in facts.variables:
            pairs = (part.partition(":") for part in facts.variables[name].split(","))
            return name, {key.strip(): value.strip() for key, _, value in pairs}
    return "", {}


def _expandable(settings: dict[str, str]) -> bool:
    return settings.get("expandable_segments", "").lower() == "true"


def _allocator_pair(facts: Facts) -> Judgement | None:
    name, settings = allocator_settings(facts)
    if not facts.is_hip or not (_expandable(settings) and "max_split_size_mb" in settings):
        return None
    what = f"{name}={facts.variables[name]} asks for both"
    return blocks(what, f"unset {name}   # torch's defaults are safe; never both settings")


def _expandable_unsupported(facts: Facts) -> Judgement | None:
    name, settings = allocator_settings(facts)
    if facts.torch is None or facts.torch.hip is None or not _expandable(settings):
        return None
    if facts.torch.number >= (2, 12) and version_of(facts.torch.hip) >= (7, 0):
        return None
    built = f"torch {facts.torch.version} with HIP {facts.torch.hip}"
    what = f"{name}={facts.variables[name]}, and {built} need not support it"
    return warns(what, f"unset {name}   # or torch 2.12 or newer, built for ROCm 7.0 or newer")


def _allocator_names(facts: Facts) -> Judgement | None:
    names = [name for name in ALLOCATOR if name in facts.variables]
    if len({facts.variables[name] for name in names}) < 2:
        return None
    shown = " ".join(f"{name}={facts.variables[name]}" for name in names)
    # On a CUDA build the HIP name is not read at all.
    return warns(
        f"{shown}: only {names[0]} is read", f"unset {' '.join(names[1:])}   # or {names[0]}"
    )


def _of(facts: Facts, *archs: str) -> list[Device]:
    """Return the devices of a ROCm build whose architecture begins like that."""
    return [d for d in facts.devices if d.arch.startswith(archs)] if facts.is_hip else []


def _small_rank(facts: Facts) -> Judgement | None:
    hit = _of(facts, "gfx120")
    torch = facts.torch
    if not hit or torch is None or torch.hip is None or version_of(torch.hip) < (7, 2):
        return None
    prefers = _asked_for_lt(facts)
    seen = f"{hit[0].name} ({hit[0].arch}) with HIP {torch.hip}"
    if prefers:
        return warns(
            f"{seen}, and {prefers}=1 asks for hipBLASLt", f"unset {prefers}   # rocBLAS is safe"
        )
    return warns(
        seen,
        "mud-puppy prefers rocBLAS here. If a LoRA run faults all the same: "
        "PYTORCH_NO_HIP_MEMORY_CACHING=1 (slower); a resumed run must get another --seed, since "
        "it would fault at the same step again",
    )


def _asked_for_lt(facts: Facts) -> str:
    return next((n for n in PREFER_LT if facts.variables.get(n, "0") not in ("", "0")), "")


def lt_choice(facts: Facts) -> str:
    """Return the variable with which the user chose for or against hipBLASLt, or nothing."""
    names = (*PREFER_LT, "DISABLE_ADDMM_HIP_LT")
    return next((name for name in names if name in facts.variables), "")


def _hipblaslt(facts: Facts) -> Judgement | None:
    if not facts.is_hip:
        return None
    asked, chosen = _asked_for_lt(facts), lt_choice(facts)
    rdna = [d for d in facts.devices if d.is_rdna]
    cdna = [d for d in facts.devices if d.is_cdna]
    if rdna and asked:
        return warns(f"{asked}=1 on {rdna[0].arch}", f"unset {asked}   # rocBLAS has the kernels")
    if rdna:
        by = f"{chosen}={facts.variables[chosen]}" if chosen else "mud-puppy prefers rocBLAS"
        return notes(
            f"{rdna[0].arch} is RDNA: {by}", "nothing; TORCH_BLAS_PREFER_HIPBLASLT=1 undoes it"
        )
    if cdna and chosen and not asked and chosen in PREFER_LT:
        what = (
            f"{chosen}={facts.variables[chosen]} on {cdna[0].arch}, where hipBLASLt is the fast one"
        )
        return notes(what, f"unset {chosen}")
    return None


def flash_is_unsafe(device: Device) -> bool:
    """Return whether bf16 flash attention is known to give NaN on this architecture."""
    return device.arch == "gfx1151"


def _flash_nan(facts: Facts) -> Judgement | None:
    hit = [d for d in _of(facts, "gfx") if flash_is_unsafe(d)]
    if not hit:
        return None
    return warns(
        f"{hit[0].name} ({hit[0].arch})",
        "mud-puppy switches torch's flash attention off here; other programs: "
        "torch.backends.cuda.enable_flash_sdp(False)",
    )


def _bitsandbytes(facts: Facts) -> Judgement | None:
    version = facts.packages.get("bitsandbytes")
    if version is None or not facts.is_hip:
        return None
    kinds = "RDNA" if any(d.is_rdna for d in facts.devices) else "CDNA"
    return warns(
        f"bitsandbytes {version} on ROCm ({kinds})",
        "use --method qlora: its 4-bit layers are mud-puppy's own and test themselves at the start",
    )


def _bnb_version(facts: Facts) -> Judgement | None:
    value = facts.variables.get("BNB_CUDA_VERSION")
    if value is None or not facts.is_hip:
        return None
    return warns(f"BNB_CUDA_VERSION={value} on a ROCm build", "unset BNB_CUDA_VERSION")


def _checkpointing(facts: Facts) -> Judgement | None:
    hit = _of(facts, "gfx103")
    discrete = [d for d in hit if not d.is_integrated]
    if not discrete:
        return None
    what = f"{discrete[0].name} ({discrete[0].arch})"
    return notes(
        what,
        "run three steps before a long run; leave out --gradient-checkpointing if the second dies",
    )


def _tf32(facts: Facts) -> Judgement | None:
    if not facts.is_hip or facts.variables.get("HIPBLASLT_ALLOW_TF32", "0") in ("", "0"):
        return None
    able = _of(facts, "gfx942", "gfx950")
    if able:
        what = f"HIPBLASLT_ALLOW_TF32 is on and {able[0].arch} rounds fp32 products to 10 bits"
        return warns(what, "unset HIPBLASLT_ALLOW_TF32   # --precision fp32 then means fp32")
    archs = ", ".join(sorted({d.arch for d in facts.devices})) or "no device"
    return notes(
        f"HIPBLASLT_ALLOW_TF32 is on, and {archs} has no TF32", "unset HIPBLASLT_ALLOW_TF32"
    )


def _no_caching(facts: Facts) -> Judgement | None:
    names = ("PYTORCH_NO_HIP_MEMORY_CACHING", "PYTORCH_NO_CUDA_MEMORY_CACHING")
    name = next((one for one in names if one in facts.variables), "")
    if not name or _of(facts, "gfx120") or not facts.devices:
        return None
    return notes(f"{name} is set: every tensor is allocated by the driver", f"unset {name}")


def _serialised(facts: Facts) -> Judgement | None:
    found = [n for n in SLOW_SWITCHES if facts.variables.get(n, "0") not in ("", "0")]
    if not found:
        return None
    shown = " ".join(f"{name}={facts.variables[name]}" for name in found)
    return notes(f"{shown}: every launch is waited for", f"unset {' '.join(found)}")


TRAPS = (
    Trap(
        code="MP-T11",
        name="allocator-pair",
        why="A live allocation reads back as zeros when max_split_size_mb and expandable_segments "
        "are combined on ROCm: the run goes on with wrong numbers.",
        sources=(
            "ROCm/legacy-rocm-build#6603 (gfx1201, gfx1100)",
            "seed 001 sets max_split_size_mb",
        ),
        judge=_allocator_pair,
    ),
    Trap(
        code="MP-T12",
        name="expandable-segments",
        why="HIP builds ignored or refused expandable_segments until it was enabled for ROCm 7.0 "
        "in torch 2.12 (AMD's own 2.11 has it, too).",
        sources=(
            "pytorch/pytorch#121885, #177974, #179930",
            "ROCm/pytorch#3106",
        ),
        judge=_expandable_unsupported,
    ),
    Trap(
        code="MP-T13",
        name="allocator-names",
        why="The allocator has three variables and reads one, so a setting that was meant to hold "
        "does not, and nobody says so.",
        sources=("torch/include/c10/cuda/CUDAAllocatorConfig.h, instance()",),
        judge=_allocator_names,
    ),
    Trap(
        code="MP-T14",
        name="small-rank-fault",
        why="hipBLASLt's kernels for gfx120x read past a 16-wide operand, such as a LoRA matrix of "
        "rank 16, and the GPU faults in the backward pass: at a step that depends on the data "
        "order alone, so that resuming runs into it again.",
        sources=(
            "ROCm/legacy-rocm-build#6413, #6600, #6647",
            "ROCm/rocm-libraries#7992, #11714",
        ),
        judge=_small_rank,
    ),
    Trap(
        code="MP-T15",
        name="hipblaslt-on-rdna",
        why="hipBLASLt has no fallback kernels on RDNA and compiles them while training, for "
        "minutes; on CDNA it is the faster library.",
        sources=("unsloth-zoo __init__.py:451-459",),
        judge=_hipblaslt,
    ),
    Trap(
        code="MP-T16",
        name="flash-attention-nan",
        why="bf16 flash attention gave NaN from the first layer on.",
        sources=("unslothai/unsloth#3385, #3588 (gfx1151, ROCm 6.4)",),
        judge=_flash_nan,
    ),
    Trap(
        code="MP-T17",
        name="bitsandbytes",
        why="4-bit kernels built for the wrong wavefront width give garbage without an error: "
        "block size 64 on RDNA (mean error 0.73), half of all values on MI300X, NF4 layers on "
        "gfx1100; older builds used block size 128, so that their checkpoints differ.",
        sources=(
            "bitsandbytes-foundation/bitsandbytes#1683, #1873, #1885, #1887, #2059, #2087",
            "ROCm/bitsandbytes#93",
        ),
        judge=_bitsandbytes,
    ),
    Trap(
        code="MP-T18",
        name="bnb-cuda-version",
        why="bitsandbytes finds ROCm by itself and loads a CUDA library when this is set.",
        sources=("seed 003, 'Install Dependencies'",),
        judge=_bnb_version,
    ),
    Trap(
        code="MP-T19",
        name="checkpointing-fault",
        why="Recomputing activations crashed on entering the second step; one step proves nothing.",
        sources=("bghira/SimpleTuner#3195 (gfx1030)",),
        judge=_checkpointing,
    ),
    Trap(
        code="MP-T20",
        name="tf32",
        why="RDNA has no TF32, so the setting that seed 001 praises does nothing there; where it "
        "exists it makes fp32 runs inexact.",
        sources=("pytorch/pytorch#130600, #193345", "seed 001, 'ROCm optimization'"),
        judge=_tf32,
    ),
    Trap(
        code="MP-T21",
        name="no-memory-caching",
        why="It works around the fault of MP-T14, costs speed, and does nothing elsewhere.",
        sources=("ROCm/legacy-rocm-build#6647",),
        judge=_no_caching,
    ),
    Trap(
        code="MP-T10",
        name="serialised-launches",
        why="These are for finding the kernel that faults. They slow every step and cure nothing: "
        "the fault of MP-T14 came with AMD_SERIALIZE_KERNEL=3, too.",
        sources=("seed 003, 'Troubleshooting'", "ROCm/rocm-libraries#11714"),
        judge=_serialised,
    ),
)
"""Traps of allocator and kernels."""
