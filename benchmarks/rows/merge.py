"""Merging a LoRA adapter: PEFT, `mud-puppy merge`, and a copy of the base.

A random Llama and an adapter of rank 16 on all its linear layers. Every run is a fresh process, and
timed as a whole, imports and fsync included. Both outputs are compared bit for bit.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from benchmarks.children import call, command
from benchmarks.frame import Figures, Plan, Row, Sides, Subject, Work, at_least, at_most, interleave

RANK = 16
SHARD = "150MB"
EXTRA_MB = 128.0
"""Memory that a merge may take beside the adapter."""


def make_models(folder: Path, width: int, layers: int) -> None:
    """Write base and adapter; every weight is random, so that nothing compresses or is zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    heads = width // 64
    settings = LlamaConfig(
        vocab_size=32_000,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(settings)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(folder / "base", max_shard_size=SHARD)
    adapter = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
    adapted = get_peft_model(model, adapter)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.02)
    adapted.save_pretrained(folder / "adapter")


def import_peft() -> None:
    """Import what PEFT's way needs."""
    import peft
    import transformers

    assert peft.PeftModel
    assert transformers.AutoModelForCausalLM


def merge_with_peft(folder: str) -> None:
    """Load, merge and save."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(Path(folder) / "base")
    merged = PeftModel.from_pretrained(model, Path(folder) / "adapter").merge_and_unload()
    merged.save_pretrained(Path(folder) / "peft", max_shard_size=SHARD)


def import_own() -> None:
    """Import what our way needs."""
    import mudpuppy.adapters.shard_merge  # noqa: F401


def merge_our_way(folder: str) -> None:
    """Merge on disk, as `mud-puppy merge` does."""
    from mudpuppy.adapters.shard_merge import merge_shards

    merge_shards(Path(folder) / "base", Path(folder) / "adapter", Path(folder) / "ours")


def count_differences(one: Path, other: Path) -> tuple[int, int]:
    """Return how many weights differ in any bit, and how many there are.

    Raises:
        RuntimeError: the tensors have other names, types or shapes.
    """
    import torch
    from safetensors import safe_open

    def tensors(folder: Path) -> dict[str, Any]:
        files = [safe_open(file, "pt") for file in sorted(folder.glob("*.safetensors"))]
        return {name: file for file in files for name in file.keys()}  # type: ignore[no-untyped-call]  # noqa: SIM118

    left, right = tensors(one), tensors(other)
    if left.keys() != right.keys():
        raise RuntimeError(f"different tensors: {sorted(left.keys() ^ right.keys())[:3]}")
    wrong = total = 0
    for name in left:
        a, b = left[name].get_tensor(name), right[name].get_tensor(name)
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            raise RuntimeError(f"{name}: {a.dtype} {a.shape} and {b.dtype} {b.shape}")
        wrong += int((a.view(torch.int16) != b.view(torch.int16)).sum())
        total += a.numel()
    return wrong, total


def measure(plan: Plan) -> Sides:
    """Merge in every way, in turn."""
    make_models(plan.folder, *plan.pick(full=(1024, 24), quick=(512, 2)))
    folder = plan.folder
    plan.rounds = min(plan.rounds, 5)

    def child(name: str, prepare: str, output: str) -> Work:
        def work() -> Figures:
            shutil.rmtree(folder / output, ignore_errors=True)
            function = f"benchmarks.rows.merge:{name}"
            return call(function, str(folder), prepare=prepare, is_whole=True)

        return work

    def copy() -> Figures:
        shutil.rmtree(folder / "copy", ignore_errors=True)
        return command(["cp", "-r", str(folder / "base"), str(folder / "copy")]).timed

    sides = interleave(
        plan,
        {
            "PEFT": child("merge_with_peft", "import_peft", "peft"),
            "mud-puppy merge": child("merge_our_way", "import_own", "ours"),
            "cp -r": copy,
        },
        is_warmed=not plan.is_quick,
    )
    wrong, total = count_differences(folder / "peft", folder / "ours")
    adapter_mb = (folder / "adapter" / "adapter_model.safetensors").stat().st_size / 1e6
    base_mb = sum(path.stat().st_size for path in (folder / "base").glob("*.safetensors")) / 1e6
    plan.facts["weights"] = f"{total / 1e6:.0f} M, {base_mb:.0f} MB of bf16"
    plan.facts["adapter"] = f"rank {RANK}, {adapter_mb:.1f} MB"
    ours = sides["mud-puppy merge"]
    assert isinstance(ours, list)
    extra = max(sample["peak_mb"] for sample in ours) - adapter_mb
    return {**sides, "output": [{"differing": wrong, "extra_mb": max(extra, 0.0)}]}


SUBJECT = Subject(
    name="merge",
    title="Merging a LoRA adapter, whole processes",
    measure=measure,
    rows=(
        Row(
            name="speed",
            what="mud-puppy merge, end to end (wall)",
            ours="mud-puppy merge",
            against="PEFT",
            figure="wall_s",
            goal=at_least(3.0),
        ),
        Row(
            name="copy",
            what="mud-puppy merge, end to end (wall)",
            ours="mud-puppy merge",
            against="cp -r",
            figure="wall_s",
            goal=None,
        ),
        Row(
            name="memory",
            what="memory beside the adapter, MB",
            ours="output",
            against=None,
            figure="extra_mb",
            goal=at_most(EXTRA_MB),
            margin=None,
        ),
        Row(
            name="memory-peft",
            what="peak memory over imports",
            ours="mud-puppy merge",
            against="PEFT",
            figure="peak_mb",
            goal=at_most(0.15),
            margin=2.0,
        ),
        Row(
            name="equal",
            what="weights that differ from PEFT's in any bit",
            ours="output",
            against=None,
            figure="differing",
            goal=at_most(0),
        ),
    ),
)
