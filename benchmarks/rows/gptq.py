"""GPTQ of the embedded model: divergence and processor time against rounding and GPTQModel."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.children import command
from benchmarks.frame import Figures, NotRun, Plan, Row, Sides, Subject, at_least, at_most

LENGTH = 128
BITS, GROUP_SIZE = 4, 128
SIDE = Path(__file__).resolve().parents[1] / "gptqmodel_side.py"
PYTHON_VARIABLE = "GPTQMODEL_PYTHON"
"""Names an interpreter that has GPTQModel, which asks for another torch than ours."""


def measure(plan: Plan) -> Sides:
    """Quantise the same model on the same rows by both, and compare on held-out rows."""
    import torch
    from transformers import AutoModelForCausalLM

    from mudpuppy.quant.gptq import GptqConfig, quantise_model
    from mudpuppy.quant.gptq_compare import HeldOut
    from mudpuppy.tiny import resolve_model

    base = resolve_model("tiny")
    rows = _rows(base)
    count = plan.pick(full=128, quick=24)
    calibrating, held = rows[:count], rows[-24:]
    plan.facts["model"] = f"tiny (width 128, 4 layers), {BITS} bits, groups of {GROUP_SIZE}"
    plan.facts["rows"] = f"{count} of {LENGTH} tokens, {len(held)} held out"
    samples, others = (
        [{"input_ids": torch.tensor([row])} for row in x] for x in (calibrating, held)
    )
    ours: list[Figures] = []
    rounded: list[Figures] = []
    spent: Figures = {}
    for act_order in (True, False):  # the default, and in the order of the columns
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        config = GptqConfig(bits=BITS, group_size=GROUP_SIZE, act_order=act_order)
        if act_order:  # the seconds without what only measures
            wall, cpu = time.perf_counter(), time.process_time()
            quantise_model(model, samples, config)
            spent = {
                "wall_s": time.perf_counter() - wall,
                "cpu_s": time.process_time() - cpu,
            }
            model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        against = HeldOut(others)
        errors = quantise_model(model, samples, config, held_out=against)
        assert against.divergence is not None
        worst = max(one.gptq_error / one.rtn_error for one in errors)
        if act_order:
            ours = [{**spent, "kl": against.divergence.gptq, "worst_layer": worst}]
            rounded = [{"kl": against.divergence.rtn}]
        else:
            ours[0]["kl_in_order"] = against.divergence.gptq
            ours[0]["act_order_share"] = ours[0]["kl"] / against.divergence.gptq
    return {
        "ours": ours,
        "round to nearest": rounded,
        "gptqmodel": _theirs(plan, base, calibrating, others),
    }


def _rows(base: str) -> list[list[int]]:
    """Return the embedded model's conversations as rows of tokens, in a fixed mixed order."""
    from transformers import AutoTokenizer

    from mudpuppy.tiny.corpus import conversations

    tokenizer = AutoTokenizer.from_pretrained(base)
    mixed = [[dict(turn) for turn in one] for one in conversations()]
    random.Random(0).shuffle(mixed)
    ids: list[int] = []
    for one in mixed:
        ids += tokenizer.apply_chat_template(one, tokenize=True, return_dict=False)
    return [ids[i : i + LENGTH] for i in range(0, len(ids) - LENGTH, LENGTH)]


def _theirs(
    plan: Plan, base: str, rows: list[list[int]], others: list[dict[str, Any]]
) -> list[Figures] | NotRun:
    """Let GPTQModel quantise, in an interpreter that has it, and measure what it wrote."""
    import torch
    import torch.nn.functional as F
    from transformers import AutoModelForCausalLM

    from mudpuppy.quant.gptq_read import load_gptq

    python = os.environ.get(PYTHON_VARIABLE, "")
    if not python and importlib.util.find_spec("gptqmodel") is None:
        return NotRun(f"gptqmodel is not installed ({PYTHON_VARIABLE} may name a Python with it)")
    if plan.is_quick:
        return NotRun("left out of the quick run: it compiles for minutes")
    stored, made = plan.folder / "rows.json", plan.folder / "theirs"
    stored.write_text(json.dumps(rows), encoding="utf-8")
    words = [python or sys.executable, str(SIDE), base, str(stored), str(made)]
    done = command(
        [*words, str(BITS), str(GROUP_SIZE), "0"],
        more={"GPTQMODEL_CPU_WORKERS": "2"},
        folder=plan.folder,  # it leaves logs where it runs
    )
    seconds: Figures = json.loads(done.output.splitlines()[-1])
    models = [AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)]
    models.append(load_gptq(made, torch.float32))
    total, tokens = 0.0, 0
    with torch.no_grad():
        for sample in others:
            wanted, found = (
                F.log_softmax(model.eval()(**sample).logits.double(), dim=-1) for model in models
            )
            total += float(F.kl_div(found, wanted, log_target=True, reduction="sum"))
            tokens += sample["input_ids"].numel()
    return [{**seconds, "kl": total / tokens}]


SUBJECT = Subject(
    name="gptq",
    title="GPTQ of the embedded model, 4 bits, groups of 128",
    measure=measure,
    minutes=15.0,
    rows=(
        Row(
            name="kl-vs-rtn",
            what="KL to the full model on held-out text",
            ours="ours",
            against="round to nearest",
            figure="kl",
            goal=at_most(0.30),
        ),
        Row(
            name="kl-vs-gptqmodel",
            what="KL to the full model on held-out text",
            ours="ours",
            against="gptqmodel",
            figure="kl",
            goal=at_most(1.1),
        ),
        Row(
            name="worst-layer",
            what="layer objective over rounding's, worst layer",
            ours="ours",
            against=None,
            figure="worst_layer",
            goal=at_most(0.5),
        ),
        Row(
            name="act-order",
            what="KL with act-order over KL without",
            ours="ours",
            against=None,
            figure="act_order_share",
            goal=at_most(1.1),
        ),
        Row(
            name="time-vs-gptqmodel",
            what="processor time",
            ours="ours",
            against="gptqmodel",
            goal=at_least(1.0),
        ),
    ),
)
