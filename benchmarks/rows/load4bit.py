"""Loading a 16-bit checkpoint in 4 bits: time and peak memory, in fresh processes.

Memory is the highest that the process held over what it held after its imports. The bound is what
the loaded model needs, and its two largest tensors in 16 bits beside that.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
)


def import_ours() -> None:
    """Import what our load needs, by opening a model of two small layers."""
    with _tiny() as folder:
        for name in ("nf4", "int4", "mxfp4"):
            open_ours(folder, name)


def import_theirs() -> None:
    """Import what bitsandbytes' load needs, by opening a model of two small layers."""
    with _tiny() as folder:
        open_theirs(folder)


@contextmanager
def _tiny() -> Iterator[str]:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 64}
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(folder)
        yield folder


def open_ours(folder: str, name: str) -> Figures:
    """Load in one of our formats, and return what the packed model and two tensors need."""
    import torch

    from mudpuppy.quant.opening import open_model
    from mudpuppy.quant.registered import FourBitConfig

    model = open_model(folder, torch.bfloat16, fourbit=FourBitConfig(format=name))
    held = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
    size = sum(tensor.numel() * tensor.itemsize for tensor in held.values())
    return {"bound_mb": (size + _two_largest(Path(folder))) / 1e6}


def _two_largest(folder: Path) -> int:
    from mudpuppy.safefile import checkpoint_tensors

    sizes = sorted(entry.size for entry in checkpoint_tensors(folder).values())
    return sum(sizes[-2:])


def open_theirs(folder: str) -> None:
    """Load in NF4 of bitsandbytes."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=settings, dtype=torch.bfloat16, device_map={"": "cpu"}
    )


def measure(plan: Plan) -> Sides:
    """Load in every way, in turn."""
    from benchmarks.models import Shape, build_model

    shape = plan.pick(
        full=Shape(width=2048, layers=18, heads=16, vocabulary=32000),
        quick=Shape(width=512, layers=4, heads=8),
    )
    folder = build_model(plan.folder / "model", shape, "bf16")
    plan.facts["checkpoint"] = f"{2 * shape.parameters / 1e9:.2f} GB in bf16"
    plan.rounds = min(plan.rounds, plan.pick(full=2, quick=1))

    def ours(name: str) -> Work:
        return lambda: call(
            "benchmarks.rows.load4bit:open_ours",
            *(str(folder), name),
            threads=plan.threads,
            prepare="import_ours",
        )

    sides: dict[str, Work | NotRun] = {name: ours(name) for name in ("nf4", "int4", "mxfp4")}
    sides["bitsandbytes"] = needs("bitsandbytes") or (
        lambda: call(
            "benchmarks.rows.load4bit:open_theirs",
            str(folder),
            threads=plan.threads,
            prepare="import_theirs",
        )
    )
    found = interleave(plan, sides, is_warmed=False)
    samples = found["nf4"]
    if isinstance(samples, list):
        found["bound"] = [{"peak_mb": one["bound_mb"]} for one in samples]
    return found


SUBJECT = Subject(
    name="load4bit",
    title="Load of a 16-bit checkpoint in 4 bits",
    measure=measure,
    rows=(
        *(
            Row(
                name=f"{name}-time",
                what=f"load in {name}, processor time",
                ours=name,
                against="bitsandbytes",
                goal=at_least(2.0),
            )
            for name in ("nf4", "int4", "mxfp4")
        ),
        Row(
            name="nf4-wall",
            what="load in nf4, wall time",
            ours="nf4",
            against="bitsandbytes",
            figure="wall_s",
            goal=at_least(2.0),
        ),
        Row(
            name="nf4-peak",
            what="load in nf4, peak against packed size + 2 tensors",
            ours="nf4",
            against="bound",
            figure="peak_mb",
            goal=at_most(1.0),
        ),
        Row(
            name="nf4-peak-bnb",
            what="load in nf4, peak against bitsandbytes'",
            ours="nf4",
            against="bitsandbytes",
            figure="peak_mb",
            goal=None,
        ),
    ),
)
