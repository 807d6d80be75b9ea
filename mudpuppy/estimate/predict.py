"""Predict the peak memory of a run, part by part, on the device and on the host.

What is exact: weights, adapter, gradients and optimizer states, which are counted on the real
modules. What is close: the activations that one forward pass keeps. What is a rule of thumb, and
named so: working memory, loss, and what a library takes for itself.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mudpuppy.chunked_loss import CHUNK_LOGITS, MIN_CHUNK_TOKENS
from mudpuppy.config import TrainingConfig
from mudpuppy.errors import ConfigError
from mudpuppy.estimate.layout import Kept, Layout, form_of, lay_out
from mudpuppy.features import PREFERENCE_METHODS
from mudpuppy.memory.streaming import IN_FLIGHT
from mudpuppy.quant.product import workspace_bytes
from mudpuppy.runtime import DTYPES

ADAM_BYTES = 8
"""Two fp32 moments a parameter."""
STEP_BYTES = 4
"""AdamW counts its steps in one fp32 number a tensor."""
SHARD_RING = 2
"""Layers that FSDP holds whole: the one at work, and the one that is gathered."""
MERGE_BYTES = 128 << 20
"""What a merge on disk holds beside the adapter: buffers of a few blocks, and the files' plans."""
SHARDED = ("weights", "adapter", "gradients", "optimizer")
"""Parts that `--fsdp full_shard` divides among the devices."""
DEVICE_OVERHEAD = 600 << 20
"""What a GPU's context, its libraries and their workspaces take: 0.4 to 0.8 GiB as a rule."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of the memory at the peak."""

    name: str
    """Stable name, such as `gradients`."""
    device: int = 0
    """Bytes on the device."""
    host: int = 0
    """Bytes on the host."""
    why: str = ""
    """What it is made of, in a few words."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a run takes at its peak."""

    parts: tuple[Part, ...]
    """The parts of the training step."""
    merge: tuple[Part, ...]
    """The parts of what follows: merging, and saving what was sharded; empty without both."""
    layout: Layout
    """What was counted."""
    devices: int = 1
    """Devices that train together; every figure is that of one of them."""

    @property
    def device(self) -> int:
        """Bytes on the device at the peak: in the step or in the merge."""
        return max(sum(p.device for p in parts) for parts in (self.parts, self.merge))

    @property
    def host(self) -> int:
        """Bytes on the host at the peak, the interpreter and its libraries excluded."""
        return max(sum(p.host for p in parts) for parts in (self.parts, self.merge))

    def to_json(self) -> dict[str, Any]:
        """Return the prediction as plain JSON types."""
        return {
            "devices": self.devices,
            "device_bytes": self.device,
            "host_bytes": self.host,
            "parts": [asdict(part) for part in self.parts],
            "merge": [asdict(part) for part in self.merge],
            "parameters": self.layout.parameters,
            "trainable": self.layout.trainable,
        }

    def by_part(self) -> dict[str, int]:
        """Return the bytes of the training step on the device, by part."""
        return {part.name: part.device for part in self.parts if part.device}


def predict(
    settings: Any, config: TrainingConfig, *, on_cpu: bool = False, devices: int = 1
) -> Prediction:
    """Predict a run.

    Args:
        settings: the model's configuration, as transformers reads it.
        config: the settings of the run.
        on_cpu: whether the device is the processor: then everything is on the device, which is the
            host, and no GPU's context is counted.
        devices: how many devices train together, one process each.

    Raises:
        ModelError: the model cannot be laid out.
        ConfigError: a target module that the model does not have, or layers are placed in a way
            that is not predicted.
    """
    require_predictable(config, devices)
    batch, length = batch_of(config)
    layout = lay_out(settings, config, batch=batch, length=length)
    return finish_prediction(layout, config, on_cpu=on_cpu, devices=devices)


def require_predictable(config: TrainingConfig, devices: int) -> None:
    """Refuse what would get the figure of another run.

    Raises:
        ConfigError: layers are spread over the devices as they fit, or weights are sharded over an
            unknown number of them.
    """
    if config.device_map in ("auto", "pipeline"):
        raise ConfigError(
            [f"not predicted: what --device-map {config.device_map} puts on each device"],
            hint="leave out --device-map for the memory of the whole model",
        )
    if config.fsdp != "none" and devices < 2:
        raise ConfigError(
            [f"not predicted: --fsdp {config.fsdp} shards over several devices, and this is one"],
            hint="say how many with --devices",
        )


def finish_prediction(
    layout: Layout, config: TrainingConfig, *, on_cpu: bool, devices: int = 1
) -> Prediction:
    """Return the prediction for a layout that was counted for the batch of `config`."""
    parts, merge = _training(layout, config, on_cpu=on_cpu), _merge(layout, config)
    if config.fsdp != "none":
        parts = _shard(parts, layout, devices)
    elif devices > 1:
        why = "a copy of the gradients, to be averaged (DDP)"
        parts = (*parts, Part(name="buckets", device=4 * layout.trainable, why=why))
    if on_cpu:
        parts, merge = _on_one_memory(parts), _on_one_memory(merge)
    return Prediction(parts=parts, merge=merge, layout=layout, devices=devices)


def _shard(parts: tuple[Part, ...], layout: Layout, devices: int) -> tuple[Part, ...]:
    """Divide what FSDP shards, and add what one device holds whole while it works.

    Each decoder layer is a unit, and the rest of the model is one that stays whole.
    """
    shards = {
        part.name: replace(
            part, device=-(-part.device // devices), why=f"{part.why}; one shard of {devices}"
        )
        for part in parts
        if part.name in SHARDED
    }
    count = max(layout.layers, 1)
    held, ring = layout.weights + layout.adapter, min(SHARD_RING, layout.layers)
    in_layers = layout.layer_weights + 4 * layout.trainable_in_layers * bool(layout.adapter)
    whole = held - in_layers + ring * in_layers // count
    slopes = 4 * (
        layout.trainable - layout.trainable_in_layers + layout.trainable_in_layers // count
    )
    why = f"{ring} layers and what is in none, with the gradients of one; rule of thumb"
    gathered = Part(name="gathered", device=whole + slopes, why=why)
    return (*(shards.get(part.name, part) for part in parts), gathered)


def _on_one_memory(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    return tuple(Part(name=p.name, device=p.device + p.host, why=p.why) for p in parts)


def batch_of(config: TrainingConfig) -> tuple[int, int]:
    """Return sequences and tokens of one forward pass, at their largest."""
    if config.tokens_per_batch is not None:
        length = min(config.max_length, config.tokens_per_batch)
        return max(1, config.tokens_per_batch // length), length
    if config.method == "grpo":
        return config.batch_size, config.max_length + config.max_completion_length
    pairs = 2 if config.method in ("dpo", "ipo", "orpo", "rm") else 1
    return config.batch_size * pairs, config.max_length


def _training(layout: Layout, config: TrainingConfig, *, on_cpu: bool) -> tuple[Part, ...]:
    """Return the parts of a training step."""
    parts = [
        _weights(layout, config),
        Part(name="adapter", device=layout.adapter, why="fp32"),
        _gradients(layout, config),
        _optimizer(layout, config),
        *_kept(layout, config),
        _loss(layout, config),
        _working(layout, config, on_cpu=on_cpu),
        *_reference(layout, config),
        *_generation(layout, config),
    ]
    if not on_cpu:
        parts.append(Part(name="context", device=DEVICE_OVERHEAD, why="libraries; rule of thumb"))
    return tuple(part for part in parts if part.device or part.host)


def _weights(layout: Layout, config: TrainingConfig) -> Part:
    held = (
        f"{config.resolved_quant} and {config.precision}"
        if config.method == "qlora"
        else "fp32 masters"
    )
    if config.method not in ("qlora",) and (config.trains_adapter or config.method == "gptq"):
        held = str(DTYPES[config.precision])[6:]
    if not config.stream:
        return Part(name="weights", device=layout.weights, why=held)
    slots = min(config.stream_layers, layout.layers)
    return Part(
        name="weights",
        device=layout.weights - layout.layer_weights + slots * layout.slot,
        host=layout.slots,
        why=f"{held}; layers on the host, at most {slots} on the device",
    )


def _split(layout: Layout, config: TrainingConfig) -> tuple[int, int]:
    """Return the trainable parameters that live on the device and on the host."""
    host = layout.trainable_in_layers if config.stream else 0
    return layout.trainable - host, host


def _gradients(layout: Layout, config: TrainingConfig) -> Part:
    device, host = _split(layout, config)
    if not config.stream:
        return Part(name="gradients", device=4 * device, host=4 * host, why="fp32")
    return Part(
        name="gradients",
        device=4 * device + IN_FLIGHT * layout.slot,
        host=layout.slots,
        why=f"fp32; {IN_FLIGHT} layers' on their way to the host",
    )


def _optimizer(layout: Layout, config: TrainingConfig) -> Part:
    device, host = _split(layout, config)
    steps = STEP_BYTES * layout.trainable_tensors
    if config.zero_offload or config.stream:
        # the host steps on fp32 copies of what is on the device, with the gradients brought over
        copies = 8 * device
        return Part(
            name="optimizer",
            host=ADAM_BYTES * device + (2 * layout.slots if host else 0) + copies + steps,
            why="AdamW's moments, masters and gradients on the host",
        )
    return Part(name="optimizer", device=ADAM_BYTES * device + steps, why="AdamW: two fp32 moments")


def recomputes(config: TrainingConfig) -> bool:
    """Return whether a layer's activations are made again in the backward pass."""
    return config.gradient_checkpointing or config.stream


def _kept(layout: Layout, config: TrainingConfig) -> tuple[Part, ...]:
    """Return what the forward pass keeps: everything, or the borders and one layer."""
    if not recomputes(config):
        inside, borders, why = layout.inside, 0, "kept by the forward pass"
    else:
        count = max(layout.layers, 1)
        inside = Kept(
            activations=layout.inside.activations // count, copies=layout.inside.copies // count
        )
        borders, why = layout.border * layout.layers, "layer borders, and one layer again"
    activations = inside.activations + layout.outside.activations + borders
    copies = inside.copies + layout.outside.copies
    return (
        Part(name="activations", device=activations, why=why),
        Part(name="weight copies", device=copies, why="weights in the type of the product"),
    )


def _loss(layout: Layout, config: TrainingConfig) -> Part:
    """Return what the loss takes: one chunk of logits and their slopes, hidden gradients, a head.

    Every trainer here scores tokens in chunks (TRL's fused head, or `mudpuppy.chunked_loss`).
    """
    if not layout.vocabulary or config.method in ("gptq", "rm", "prm"):
        return Part(name="loss")
    batch, length = batch_of(config)
    tokens = batch * length
    chunk = 4 * min(
        tokens * layout.vocabulary, max(CHUNK_LOGITS, MIN_CHUNK_TOKENS * layout.vocabulary)
    )
    size = DTYPES[config.precision].itemsize
    trains_head = not config.trains_adapter
    head = layout.head * (size * (size < 4) + 4) if trains_head else 0
    slopes = tokens * layout.width * (4 if trains_head else size)
    return Part(name="loss", device=2 * chunk + head + slopes, why="in chunks of tokens")


def _working(layout: Layout, config: TrainingConfig, *, on_cpu: bool) -> Part:
    """Return the memory of the operation at work: a rule of thumb."""
    if config.method == "gptq":
        hessian = 4 * layout.largest_linear  # at least width^2, of the layer at work
        return Part(name="working memory", device=4 * hessian, why="Hessians; rule of thumb")
    dense = 0
    if config.method == "qlora":
        size = DTYPES[config.precision].itemsize
        dense = workspace_bytes(layout.largest_linear, size, on_cpu=on_cpu)
        if config.use_dora:  # its lengths are those of the dense weight, in fp32
            dense = 12 * layout.largest_linear
    if not config.trains_adapter:
        dense = 6 * layout.largest_linear  # a weight's gradient, in both types
    return Part(
        name="working memory",
        device=2 * layout.largest_kept + dense,
        why="gradients of activations; rule of thumb",
    )


def _reference(layout: Layout, config: TrainingConfig) -> tuple[Part, ...]:
    """Return the frozen model that full weights are compared with; an adapter is switched off."""
    compares = (*(name for name in PREFERENCE_METHODS if name != "orpo"),)
    wanted = config.method in compares or (config.method == "grpo" and bool(config.beta))
    if not wanted:
        return ()
    if config.trains_adapter:
        if config.adapter is None:
            return ()
        return (Part(name="reference", device=layout.adapter, why="a copy of the adapter"),)
    return (Part(name="reference", device=layout.weights, why="a frozen copy of the model"),)


def _generation(layout: Layout, config: TrainingConfig) -> tuple[Part, ...]:
    """Return the cache of keys and values of the answers that are generated at a time."""
    if config.method != "grpo":
        return ()
    answers = max(config.batch_size, config.num_generations)
    tokens = answers * (config.max_length + config.max_completion_length)
    return (Part(name="generation", device=tokens * layout.cache_per_token, why="keys and values"),)


def _merge(layout: Layout, config: TrainingConfig) -> tuple[Part, ...]:
    """Return what the merge takes, which follows the training; the trained model is still held.

    A sharded model is made whole on the host before it is saved, merged or not.
    """
    held: tuple[Part, ...] = (
        _weights(layout, config),
        Part(name="adapter", device=layout.adapter, why="fp32"),
    )
    if config.fsdp != "none":
        held = tuple(
            replace(p, device=0, host=p.device, why="whole, in each process") for p in held
        )
    if not config.merge_lora:
        return held if config.fsdp != "none" else ()
    if merges_on_disk(config):
        why = "the adapter as it is read, and blocks of the base; rule of thumb"
        return (*held, Part(name="merge on disk", host=layout.adapter + MERGE_BYTES, why=why))
    wanted = config.merge_precision or config.precision
    merged = layout.parameters * DTYPES[wanted].itemsize
    largest = 4 * layout.largest_linear
    return (
        *held,
        Part(name="merged", device=merged, why=f"the model in {wanted}"),
        Part(name="working memory", device=2 * largest, why="one matrix and its update"),
    )


def merges_on_disk(config: TrainingConfig) -> bool:
    """Return whether the engine merges block by block on disk, and not in the live model.

    That takes a language model whose weights are safetensors; a base of which only the
    configuration is here is taken for one.
    """
    *_, task_type = form_of(config)
    folder = Path(config.model).expanduser()
    is_pickled = any(folder.glob("pytorch_model*.bin")) and not any(folder.glob("*.safetensors"))
    return task_type == "CAUSAL_LM" and not is_pickled
