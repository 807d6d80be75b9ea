"""Traps of the installation: the wheel, the door to the GPU, which GPUs are visible, which ISA."""

from __future__ import annotations

from mudpuppy.env.facts import Device, Facts, arch_of_override
from mudpuppy.env.judged import Judgement, Trap, blocks, warns

VISIBILITY = ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")


def _torch_fails(facts: Facts) -> Judgement | None:
    if facts.torch is None:
        return blocks("torch is not installed", "install the torch build for this machine")
    if not facts.torch.error:
        return None
    what = f"torch {facts.torch.version} cannot say which GPUs there are: {facts.torch.error}"
    return blocks(what, "dmesg | tail -n 50   # the driver's own words; then mend or reboot")


def _wrong_wheel(facts: Facts) -> Judgement | None:
    if not facts.amd_gpus or facts.torch is None or facts.torch.hip or facts.nvidia_gpus:
        return None
    if facts.torch.error:
        return None
    built = f"CUDA {facts.torch.cuda}" if facts.torch.cuda else "processors only"
    return blocks(
        f"this machine has {_count(len(facts.amd_gpus), 'AMD GPU')} "
        f"({', '.join(facts.amd_gpus)}), and torch {facts.torch.version} is built for {built}",
        "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/rocmX.Y"
        "   # X.Y as on pytorch.org; then run this again",
    )


def _no_gpu_seen(facts: Facts) -> Judgement | None:
    if not (facts.is_hip and facts.amd_gpus) or facts.devices or facts.torch is None:
        return None
    if facts.torch.error:
        return None
    hidden = [name for name in VISIBILITY if name in facts.variables]
    seen = f"torch {facts.torch.version} is a ROCm build and sees none of the AMD GPUs"
    if facts.kfd == "refused":
        return blocks(
            f"{seen}: /dev/kfd may not be opened",
            "sudo usermod -aG render,video $USER   # then log in anew; in a container: "
            "--device /dev/kfd --device /dev/dri --group-add render",
        )
    if facts.kfd == "missing":
        do = "sudo modprobe amdgpu   # in a container: --device /dev/kfd --device /dev/dri"
        return blocks(f"{seen}: there is no /dev/kfd", do)
    if hidden:
        return blocks(f"{seen}: {_shown(facts, *hidden)}", f"unset {' '.join(hidden)}")
    return blocks(seen, "rocminfo | grep gfx   # if it sees none either, the driver is at fault")


def _visibility(facts: Facts) -> Judgement | None:
    """Torch's own rule: ROCR counts first and renumbers, then HIP (or CUDA) counts what is left."""
    if not facts.is_hip:
        return None
    values = {name: facts.variables[name] for name in VISIBILITY if name in facts.variables}
    hip, rocr = values.get("HIP_VISIBLE_DEVICES"), values.get("ROCR_VISIBLE_DEVICES")
    shown = _shown(facts, *values)
    if hip is not None and rocr is not None and len(hip.split(",")) > len(rocr.split(",")):
        return blocks(f"{shown}: HIP names more devices than ROCR leaves, and torch raises", _KEEP)
    if rocr is not None and len(values) > 1:
        return warns(f"{shown}: the second list numbers what ROCR left, from 0", _KEEP)
    if len(set(values.values())) > 1:
        return warns(f"{shown}: they differ, and HIP_VISIBLE_DEVICES wins", _KEEP)
    return None


_KEEP = "unset ROCR_VISIBLE_DEVICES CUDA_VISIBLE_DEVICES   # and keep HIP_VISIBLE_DEVICES alone"


def integrated_beside_discrete(facts: Facts) -> tuple[Device, ...]:
    """Return the integrated GPUs that torch sees beside a discrete one, on a ROCm build."""
    integrated = tuple(device for device in facts.devices if device.is_integrated)
    return integrated if facts.is_hip and len(integrated) < len(facts.devices) else ()


def discrete_numbers(facts: Facts) -> list[str]:
    """Return what HIP_VISIBLE_DEVICES has to name so that only discrete GPUs are left."""
    rest = [one.index for one in facts.devices if one not in integrated_beside_discrete(facts)]
    listed = facts.variables.get("HIP_VISIBLE_DEVICES", "").split(",")
    # Torch numbers what the variable names, in the variable's order.
    return [listed[n] if max(rest) < len(listed) and listed[n] else str(n) for n in rest]


def _integrated_gpu(facts: Facts) -> Judgement | None:
    integrated = integrated_beside_discrete(facts)
    if not integrated:
        return None
    names = ", ".join(f"cuda:{one.index} ({one.name}, {one.arch})" for one in integrated)
    rest = discrete_numbers(facts)
    return warns(
        f"{names} is part of the processor and visible beside {_count(len(rest), 'discrete GPU')}",
        f"export HIP_VISIBLE_DEVICES={','.join(rest)}   # mud-puppy never computes on it "
        "itself; other programs do",
    )


def _device_map(facts: Facts) -> Judgement | None:
    if not facts.is_hip or len(facts.devices) < 2:
        return None
    archs = sorted({device.arch for device in facts.devices})
    seen = f"{len(facts.devices)} devices are visible ({', '.join(archs)})"
    if integrated_beside_discrete(facts):
        return warns(
            f"{seen}, and device_map='auto' would put layers on the integrated one",
            "mud-puppy refuses --device-map auto and pipeline here until HIP_VISIBLE_DEVICES hides "
            "it",
        )
    if len(archs) > 1:
        what = f"{seen}, and device_map='auto' would spread one model over unequal devices"
        return warns(what, "choose one of them with HIP_VISIBLE_DEVICES")
    return None


def _override(facts: Facts) -> Judgement | None:
    for name in sorted(facts.variables):
        if not name.startswith("HSA_OVERRIDE_GFX_VERSION"):
            continue
        value = facts.variables[name]
        named = arch_of_override(value)
        shown = _shown(facts, name)
        if not named:
            return blocks(f"{shown} is no version such as 11.0.0", f"unset {name}")
        others = [arch for arch in facts.amd_gpus if arch not in (named, "unknown")]
        if not others:
            return None
        known = facts.torch is not None and set(others) <= set(facts.torch.archs)
        what = f"{shown} makes {', '.join(others)} pass for {named}"
        if known:
            return warns(f"{what}, and this torch has kernels for it as it is", f"unset {name}")
        return warns(
            f"{what}: code for another instruction set runs on it",
            f"unset {name}   # and install a torch whose torch.cuda.get_arch_list() names "
            f"{others[0]}",
        )
    return None


def _no_kernels(facts: Facts) -> Judgement | None:
    if facts.torch is None or not facts.is_hip or not facts.torch.archs:
        return None
    without = [d for d in facts.devices if d.arch not in facts.torch.archs]
    discrete = [d for d in without if d not in integrated_beside_discrete(facts)]
    if not discrete:
        return None
    first = discrete[0]
    return blocks(
        f"torch {facts.torch.version} has no kernels for {first.arch} ({first.name}); it has them "
        f"for {', '.join(facts.torch.archs)}",
        "install a newer ROCm build of torch; HSA_OVERRIDE_GFX_VERSION is a last resort within one "
        "generation (gfx1031 as 10.3.0), and never across two",
    )


def _computes_wrongly(facts: Facts) -> Judgement | None:
    wrong = [
        f"cuda:{device.index} ({device.arch}) {precision}: {result}"
        for device in facts.devices
        for precision, result in device.compute.items()
        if result != "ok"
    ]
    if not wrong:
        return None
    what = "test products and attention are not what a processor computes: " + "; ".join(wrong)
    return blocks(what, "leave these devices or precisions out; report it with this output")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _shown(facts: Facts, *names: str) -> str:
    return " ".join(f"{name}={facts.variables[name]}" for name in names)


TRAPS = (
    Trap(
        code="MP-T01",
        name="torch-fails",
        why="Without an answer of torch there is nothing to train on, and every other check here "
        "is blind.",
        sources=("upstream SESSION_NOTES.md: basic operations on an integrated GPU segfault",),
        judge=_torch_fails,
    ),
    Trap(
        code="MP-T02",
        name="wrong-wheel",
        why="Training silently runs on the processor, a hundred times slower. Another package's "
        "requirements often replace a ROCm torch by the default one.",
        sources=(
            "seed 003, 'Install llama.cpp'",
            "unsloth-zoo device_type.py:181-207",
        ),
        judge=_wrong_wheel,
    ),
    Trap(
        code="MP-T03",
        name="no-gpu-seen",
        why="The driver or the permissions hide the GPU; torch says no more than "
        "'No HIP GPUs are available'.",
        sources=("AMD's installation guide: groups render and video",),
        judge=_no_gpu_seen,
    ),
    Trap(
        code="MP-T04",
        name="visibility-variables",
        why="ROCR_VISIBLE_DEVICES is applied first and renumbers what is left; the other two count "
        "from there. Another GPU than meant is used, or none.",
        sources=("torch/cuda/__init__.py, _parse_visible_devices",),
        judge=_visibility,
    ),
    Trap(
        code="MP-T05",
        name="integrated-gpu",
        why="HIP enumerates the processor's own GPU as a device like any other; basic operations "
        "on it segfault where no kernels exist for it.",
        sources=("seed 000, 'Gotchas'", "upstream SESSION_NOTES.md"),
        judge=_integrated_gpu,
    ),
    Trap(
        code="MP-T06",
        name="device-map-auto",
        why="device_map='auto' fills every visible device, and crashed on ROCm as soon as one of "
        "them could not compute.",
        sources=("seed 000, 'ROCm Device Handling'", "upstream SESSION_NOTES.md"),
        judge=_device_map,
    ),
    Trap(
        code="MP-T07",
        name="gfx-override",
        why="Kernels of another instruction set may fault, hang or compute wrongly; the advice "
        "outlives the reason it was given for.",
        sources=("seed 003, 'Troubleshooting' (gfx1151 as 11.0.0)",),
        judge=_override,
    ),
    Trap(
        code="MP-T08",
        name="no-kernels",
        why="The first operation fails with 'HIP error: invalid device function'.",
        sources=("seed 003, 'Troubleshooting'",),
        judge=_no_kernels,
    ),
    Trap(
        code="MP-T09",
        name="computes-wrongly",
        why="A tensor of a type can be allocated where the type cannot compute, so only a product "
        "tells; flash attention in bf16 has given NaN where products were right.",
        sources=(
            "upstream create_training_args probed bf16 by allocating",
            "unslothai/unsloth#3385",
        ),
        judge=_computes_wrongly,
    ),
)
"""Traps of the installation."""
