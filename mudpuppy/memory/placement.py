"""`--device-map`: which device holds which layer, worked out before anything is moved.

accelerate's own `auto` takes whatever torch enumerates, and an integrated GPU among them crashes
the process (engines.md, section 4): `mudpuppy.env` refuses it before. Here the map is explicit, and
weights are loaded on the host and moved from there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import dispatch_model
from torch import nn

from mudpuppy.errors import ConfigError
from mudpuppy.quant.blocks import find_decoder_layers
from mudpuppy.records import Choice

HEADROOM = 0.85
"""Share of a device's memory that weights, gradients and states may fill."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """One GPU, as torch describes it."""

    index: int
    """Its number."""
    memory: int
    """Its memory, in bytes."""


def list_devices() -> list[Device]:
    """Return every GPU that torch sees; an integrated one beside them is refused before."""
    return [
        Device(index=index, memory=int(torch.cuda.get_device_properties(index).total_memory))
        for index in range(torch.cuda.device_count())
    ]


def part_bytes(model: nn.Module) -> tuple[str, list[int], dict[str, int]]:
    """Return the path of the decoder layers, the bytes of each, and those of what is beside them.

    What is beside them are the largest modules that hold no decoder layer, such as the embeddings.
    """
    path, layers = find_decoder_layers(model)
    above = {path.rsplit(".", n)[0] for n in range(path.count(".") + 1)} | {""}
    beside = {
        name: _bytes_of(module)
        for name, module in model.named_modules()
        if name not in above and name.rpartition(".")[0] in above - {path}
    }
    return path, [_bytes_of(layer) for layer in layers], beside


def _bytes_of(module: nn.Module) -> int:
    tensors = {id(t): t for t in [*module.parameters(), *module.buffers()]}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def require_devices(kind: str | None, devices: Sequence[Device]) -> None:
    """Refuse a pipeline without stages, before anything is loaded.

    Raises:
        ConfigError: there are fewer than two devices.
    """
    if kind == "pipeline" and len(devices) < 2:
        raise ConfigError(
            [f"--device-map pipeline needs two GPUs, and torch can use {len(devices)} here"],
            hint="leave out --device-map; to fit a larger model on one device, use --stream, "
            "--zero-offload or --method qlora",
        )


def pipeline_map(
    path: str,
    sizes: Sequence[int],
    beside: Mapping[str, int],
    devices: Sequence[Device],
    *,
    is_tied: bool,
) -> dict[str, int]:
    """Return a device for every part: layers in equal stages, in the order they run.

    What stands before the layers is with the first stage and what stands behind with the last; a
    head that is tied to the embeddings is with them, since two copies would learn apart.

    Raises:
        ConfigError: there are fewer layers than devices, or fewer than two devices.
    """
    require_devices("pipeline", devices)
    if len(sizes) < len(devices):
        raise ConfigError(
            [f"--device-map pipeline: {len(sizes)} layers cannot fill {len(devices)} stages"],
            hint="show fewer GPUs (HIP_VISIBLE_DEVICES, CUDA_VISIBLE_DEVICES)",
        )
    stages = _split_evenly(sizes, len(devices))
    placed = {f"{path}.{i}": devices[stage].index for i, stage in enumerate(stages)}
    return placed | _place_beside(beside, devices[0].index, devices[-1].index, is_tied)


def _place_beside(
    beside: Mapping[str, int], first: int, last: int, is_tied: bool
) -> dict[str, int]:
    """Put what comes behind the layers (the last norm, the head) on the last device."""
    behind = ("norm", "ln_f", "score", *(() if is_tied else ("head", "embed_out")))
    return {
        name: last if any(word in name.rpartition(".")[2] for word in behind) else first
        for name in beside
    }


def _split_evenly(sizes: Sequence[int], num_stages: int) -> list[int]:
    """Return a stage for each layer: consecutive, none empty, and as equal in bytes as can be."""
    total, done = sum(sizes), 0
    stages: list[int] = []
    for index, size in enumerate(sizes):
        wanted = int((done + size / 2) * num_stages / max(total, 1))
        lowest = stages[-1] if stages else 0
        # enough layers must be left for the stages that follow
        highest = lowest + 1 if stages else 0
        forced = num_stages - (len(sizes) - index)
        stages.append(max(min(wanted, highest), lowest, forced))
        done += size
    return stages


def auto_map(
    path: str,
    sizes: Sequence[int],
    beside: Mapping[str, int],
    devices: Sequence[Device],
    *,
    factor: float,
    is_tied: bool,
) -> dict[str, int]:
    """Return a device for every part: each device is filled before the next, as layers run.

    Args:
        path: of the decoder layers.
        sizes: bytes of each layer's weights.
        beside: bytes of everything else.
        devices: those to fill.
        factor: bytes that training takes for each byte of weights, they included.
        is_tied: whether head and embeddings are one tensor.

    Raises:
        ConfigError: the model does not fit.
    """
    room = {device.index: device.memory * HEADROOM for device in devices}
    # Kept free on the last one too: which that is shows only at the end.
    for device in devices:
        room[device.index] -= sum(beside.values()) * factor
    placed: dict[str, int] = {}
    stage = 0
    for index, size in enumerate(sizes):
        while room[devices[stage].index] < size * factor:
            stage += 1
            if stage == len(devices):
                raise ConfigError(
                    [f"--device-map auto: the model does not fit on {len(devices)} GPU(s)"],
                    hint="use --method qlora, --zero-offload or --stream",
                )
        room[devices[stage].index] -= size * factor
        placed[f"{path}.{index}"] = devices[stage].index
    return placed | _place_beside(beside, devices[0].index, devices[stage].index, is_tied)


def map_model(model: Any, kind: str, devices: Sequence[Device], *, factor: float) -> dict[str, int]:
    """Return the device of every part of a model that lies on the host.

    Raises:
        ConfigError: the devices are too few or too small.
    """
    path, sizes, beside = part_bytes(model)
    head = model.get_output_embeddings()
    is_tied = head is not None and head.weight is model.get_input_embeddings().weight
    if kind == "pipeline":
        return pipeline_map(path, sizes, beside, devices, is_tied=is_tied)
    return auto_map(path, sizes, beside, devices, factor=factor, is_tied=is_tied)


def place(model: Any, kind: str, device: torch.device, *, factor: float) -> Choice:
    """Move a model that was loaded on the host to where `--device-map` wants it.

    Raises:
        ConfigError: the devices are too few or too small.
    """
    devices = list_devices() if device.type != "cpu" else []
    require_devices(kind, devices)
    if len(devices) < 2:
        model.to(device)
        return Choice(value=str(device), reason="everything is there: torch sees no second device")
    placed = map_model(model, kind, devices, factor=factor)
    dispatch_model(model, placed)
    counts = Counter(placed[name] for name in placed if name.rpartition(".")[2].isdigit())
    stages = ", ".join(f"{n} layers on GPU {index}" for index, n in sorted(counts.items()))
    return Choice(value=kind, reason=stages)


def bytes_for_each_byte(*, trains_all: bool) -> float:
    """Return what training takes for a byte of weights: fp32 gradients and two states, or little.

    An adapter's own states are small; activations lie in the headroom.
    """
    return 4.0 if trains_all else 1.2
