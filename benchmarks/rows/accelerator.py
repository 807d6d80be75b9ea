"""Training on an accelerator: time and peak memory of a step on models of 1B and 7B shape, bf16.

Random weights; every run is a fresh process. LoRA and the two QLoRAs (ours, bitsandbytes') take the
same bare steps around PEFT; all weights, resident and streamed, are trained by the engine.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.children import call
from benchmarks.frame import (
    Figures,
    NotRun,
    Plan,
    Row,
    Sides,
    Subject,
    Work,
    at_least,
    at_most,
    interleave,
    needs,
    needs_gpu,
)

if TYPE_CHECKING:
    from benchmarks.models import Shape

TOKENS = 4096
STEPS = 4
ADAPTERS = ("lora", "qlora", "bitsandbytes")
ALL_WEIGHTS = ("full", "stream")


def shapes() -> dict[str, Shape]:
    """Return the models by what people call their size."""
    from benchmarks.models import Shape

    return {
        "1B": Shape(
            width=2048, layers=16, heads=32, inner=8192, vocabulary=32_000, positions=TOKENS
        ),
        "7B": Shape(
            width=4096, layers=32, heads=32, inner=11_008, vocabulary=32_000, positions=TOKENS
        ),
    }


def train_adapter(folder: str, kind: str, tokens: int, device: str) -> Figures:
    """Take bare steps with an adapter on a base in 16 or 4 bits."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    more: dict[str, Any] = {}
    if kind == "bitsandbytes":
        more["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
        more["device_map"] = {"": device}
    model = AutoModelForCausalLM.from_pretrained(
        Path(folder) / "model", dtype=torch.bfloat16, use_cache=False, **more
    )
    if kind == "qlora":
        from mudpuppy.quant.formats import FORMATS
        from mudpuppy.quant.linear4bit import replace_linears

        replace_linears(model, FORMATS["nf4"])
    if kind != "bitsandbytes":
        model.to(device)
    model.activation_checkpointing_enable()
    settings = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    adapted = get_peft_model(model, settings)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    ids = torch.randint(1000, (1, tokens), device=device)
    _restart(device)
    for number in range(STEPS + 1):
        if number == 1:  # the first one allocates
            _wait(device)
            wall, cpu = time.perf_counter(), time.process_time()
        with torch.autocast(device, torch.bfloat16):
            loss = adapted(input_ids=ids, labels=ids).loss
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    _wait(device)
    return {
        "wall_s": (time.perf_counter() - wall) / STEPS,
        "cpu_s": (time.process_time() - cpu) / STEPS,
        "loss": float(loss.detach()),
        "held_mb": _peak(device) / 1e6,
    }


def train_all(folder: str, kind: str, tokens: int, device: str, output: str) -> Figures:
    """Train all weights with the engine, resident or streamed."""
    from benchmarks.models import Scales
    from mudpuppy.config_check import load_config
    from mudpuppy.engine import train

    scales = Scales()
    given = {
        "model": str(Path(folder) / "model"),
        "dataset": Path(folder) / "chats.jsonl",
        "output": Path(folder) / output,
        "method": "full",
        "precision": "bf16",
        "device": device,
        "max_length": tokens,
        "max_steps": STEPS,
        "batch_size": 1,
        "packing": True,
        **({"stream": True} if kind == "stream" else {"gradient_checkpointing": True}),
    }
    train(load_config(given), watcher=scales)
    return {
        "wall_s": scales.wall_s / STEPS,
        "cpu_s": scales.cpu_s / STEPS,
        "held_mb": scales.peak / 1e6,
    }


def _restart(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _wait(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def _peak(device: str) -> int:
    import torch

    return int(torch.cuda.max_memory_allocated()) if device == "cuda" else 0


def measure(plan: Plan) -> Sides:
    """Train every model in every way.

    Raises:
        NotRun: there is no accelerator.
    """
    if missing := needs_gpu():
        raise missing
    import torch

    from benchmarks.models import build_model, write_chats

    plan.facts["device"] = torch.cuda.get_device_name()
    plan.facts["step"] = f"{TOKENS} tokens, gradient checkpointing"
    plan.rounds = min(plan.rounds, 3)
    room = torch.cuda.get_device_properties(0).total_memory
    sides: Sides = {}
    for name, shape in shapes().items():
        folder = plan.folder / name
        folder.mkdir()
        build_model(folder / "model", shape, "bf16")
        write_chats(folder / "chats.jsonl", 64, TOKENS, sigma=0.8)
        found = interleave(plan, _works(folder, shape.parameters, room), is_warmed=False)
        sides |= {f"{kind} {name}": samples for kind, samples in found.items()}
    return sides


def _works(folder: Path, parameters: int, room: int) -> dict[str, Work | NotRun]:
    count = iter(range(1000))
    own = "benchmarks.rows.accelerator"

    def adapter(kind: str) -> Work:
        return lambda: call(f"{own}:train_adapter", str(folder), kind, TOKENS, "cuda")

    def everything(kind: str) -> Work:
        return lambda: call(
            f"{own}:train_all", str(folder), kind, TOKENS, "cuda", f"out{next(count)}"
        )

    works: dict[str, Work | NotRun] = {kind: adapter(kind) for kind in ADAPTERS}
    works["bitsandbytes"] = needs("bitsandbytes") or adapter("bitsandbytes")
    works |= {kind: everything(kind) for kind in ALL_WEIGHTS}
    if 17 * parameters > room:  # masters, gradients, two moments, and some room
        works["full"] = NotRun("all weights do not fit into this device")
    return works


def _rows(size: str) -> tuple[Row, ...]:
    return (
        Row(
            name=f"qlora-time-{size}",
            what=f"{size}: QLoRA step (wall)",
            ours=f"qlora {size}",
            against=f"lora {size}",
            figure="wall_s",
            goal=at_most(1.15),
        ),
        Row(
            name=f"qlora-memory-{size}",
            what=f"{size}: QLoRA step, peak memory",
            ours=f"qlora {size}",
            against=f"lora {size}",
            figure="held_mb",
            goal=at_most(0.55),
        ),
        Row(
            name=f"bitsandbytes-time-{size}",
            what=f"{size}: QLoRA step (wall)",
            ours=f"qlora {size}",
            against=f"bitsandbytes {size}",
            figure="wall_s",
            goal=at_least(1.0),
        ),
        Row(
            name=f"stream-memory-{size}",
            what=f"{size}: streamed step, peak memory",
            ours=f"stream {size}",
            against=f"full {size}",
            figure="held_mb",
            goal=at_most(0.35),
        ),
        Row(
            name=f"stream-time-{size}",
            what=f"{size}: streamed step (wall)",
            ours=f"stream {size}",
            against=f"full {size}",
            figure="wall_s",
            goal=at_most(1.10),
        ),
    )


SUBJECT = Subject(
    name="accelerator",
    title="Training on an accelerator",
    measure=measure,
    in_quick=False,
    minutes=60,
    rows=(*_rows("1B"), *_rows("7B")),
)
