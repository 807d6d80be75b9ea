"""GPTQ of a small Llama that is trained here on real text: divergence against rounding.

The embedded model knows its few conversations by heart, so that rounding hardly moves what it says
and there is little to win (see `gptq`). This one reads the sources of Python's standard library,
byte by byte, for a few hundred steps: it predicts text that it has not seen, as users' models do.
"""

from __future__ import annotations

import random
import sysconfig
from pathlib import Path
from typing import Any

from benchmarks.frame import Plan, Row, Sides, Subject, at_most

PACKAGES = ("asyncio", "collections", "concurrent", "email", "http", "importlib", "json", "logging")
"""Folders of the standard library that it learns from."""
HELD_OUT = ("unittest", "xml")
"""Folders that calibration and comparison read, of which it has seen nothing."""
LENGTH = 128
BATCH = 8
LAYERS, WIDTH = 6, 256
BITS, GROUP_SIZE = 4, 128


def measure(plan: Plan) -> Sides:
    """Train, quantise on some rows of other text, and compare on further ones."""
    import torch

    from mudpuppy.quant.gptq import GptqConfig, quantise_model
    from mudpuppy.quant.gptq_compare import HeldOut

    steps = plan.pick(full=400, quick=4)
    model, loss = _train(_rows(PACKAGES), steps)
    rows = _rows(HELD_OUT)
    calibrating = plan.pick(full=128, quick=8)
    samples = [{"input_ids": torch.tensor([row])} for row in rows[: calibrating + 24]]
    plan.facts["model"] = f"Llama, {LAYERS} layers, width {WIDTH}, bytes, {steps} steps"
    plan.facts["loss"] = round(loss, 3)
    plan.facts["rows"] = f"{calibrating} of {LENGTH} bytes, 24 held out"
    against = HeldOut(samples[calibrating:])
    config = GptqConfig(bits=BITS, group_size=GROUP_SIZE, act_order=True)
    errors = quantise_model(model, samples[:calibrating], config, held_out=against)
    assert against.divergence is not None
    worst = max(one.gptq_error / one.rtn_error for one in errors)
    return {
        "ours": [{"kl": against.divergence.gptq, "worst_layer": worst}],
        "round to nearest": [{"kl": against.divergence.rtn}],
    }


def _rows(packages: tuple[str, ...]) -> list[list[int]]:
    """Return the sources of some packages as rows of bytes, in a fixed mixed order."""
    library = Path(sysconfig.get_path("stdlib"))
    files = [file for name in packages for file in sorted((library / name).rglob("*.py"))]
    raw = b"\n".join(file.read_bytes() for file in files if "test" not in file.parts)
    rows = [list(raw[i : i + LENGTH]) for i in range(0, len(raw) - LENGTH, LENGTH)]
    random.Random(0).shuffle(rows)
    return rows


def _train(rows: list[list[int]], steps: int) -> tuple[Any, float]:
    """Return a model that learnt from rows, and its loss over the last tenth of the steps."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=LENGTH,
        bos_token_id=None,
        eos_token_id=None,
    )
    model: Any = LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.1
    )
    losses: list[float] = []
    for step in range(steps):
        start = step * BATCH % (len(rows) - BATCH)
        ids = torch.tensor(rows[start : start + BATCH])
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
    last = losses[-max(1, steps // 10) :]
    return model.eval(), sum(last) / len(last)


SUBJECT = Subject(
    name="gptq_trained",
    title="GPTQ of a Llama trained on real text, 4 bits, groups of 128",
    measure=measure,
    threads=2,
    in_quick=False,
    minutes=15.0,
    rows=(
        Row(
            name="kl-vs-rtn",
            what="KL to the full model on unseen text",
            ours="ours",
            against="round to nearest",
            figure="kl",
            goal=at_most(0.30),
        ),
        Row(
            name="worst-layer",
            what="layer objective over rounding's, worst layer",
            ours="ours",
            against=None,
            figure="worst_layer",
            goal=at_most(0.5),
        ),
    ),
)
