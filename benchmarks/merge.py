"""Side by side: merge a LoRA adapter with PEFT, with `mud-puppy merge`, and copy the base.

python benchmarks/merge.py [--runs 3] [--threads N] [--output benchmarks/results]

A random Llama (369 M weights, 0.74 GB bf16, 5 files) and an adapter of rank 16 on all its linear
layers. Every run is a fresh process; the three take turns. Peak memory is VmHWM at the end less
VmHWM after the imports. The outputs of both merges are compared bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

SHAPE = {
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
}
RANK = 16
KINDS = ("peft", "mudpuppy", "cp")
GOALS = {"speed": 3.0, "extra_mb_over_adapter": 128.0}
PACKAGES = ("torch", "transformers", "peft", "safetensors")


def make_models(folder: Path) -> None:
    """Write base and adapter; every weight is random, so that nothing compresses or is zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(folder / "base", max_shard_size="150MB")
    settings = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
    adapted = get_peft_model(model, settings)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.02)
    adapted.save_pretrained(folder / "adapter")


def peak_mb() -> float:
    """Return the peak resident memory of this process so far."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1e3


def run_child(kind: str, folder: Path) -> dict[str, float]:
    """Do one merge in this process and return its figures."""
    started = time.perf_counter()
    base, adapter, output = folder / "base", folder / "adapter", folder / kind
    if kind == "peft":
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        imported, before = time.perf_counter(), peak_mb()
        model = AutoModelForCausalLM.from_pretrained(base)
        merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
        merged.save_pretrained(output, max_shard_size="150MB")
    else:
        from mudpuppy.adapters.shard_merge import merge_shards

        imported, before = time.perf_counter(), peak_mb()
        merge_shards(base, adapter, output)
    ended = time.perf_counter()
    return {
        "import_s": imported - started,
        "merge_s": ended - imported,
        "cpu_s": time.process_time(),
        "extra_mb": peak_mb() - before,
    }


def measure(kind: str, folder: Path, threads: int) -> dict[str, float]:
    """Run one kind in a fresh process and return its figures, with the wall time from outside."""
    shutil.rmtree(folder / kind, ignore_errors=True)
    os.sync()
    words = [sys.executable, __file__, "--child", kind, "--folder", str(folder)]
    if kind == "cp":
        words = ["cp", "-r", str(folder / "base"), str(folder / "cp")]
    env = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    started = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=env)
    wall = time.perf_counter() - started
    figures = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}
    return {"wall_s": wall, **figures}


def count_differences(one: Path, other: Path) -> tuple[int, int]:
    """Return how many weights differ in any bit, and how many there are."""
    import torch
    from safetensors import safe_open

    def tensors(folder: Path) -> dict[str, Any]:
        files = [safe_open(file, "pt") for file in sorted(folder.glob("*.safetensors"))]
        return {name: file for file in files for name in file.keys()}  # noqa: SIM118

    left, right = tensors(one), tensors(other)
    if left.keys() != right.keys():
        raise SystemExit(f"different tensors: {sorted(left.keys() ^ right.keys())[:3]}")
    wrong = total = 0
    for name in left:
        a, b = left[name].get_tensor(name), right[name].get_tensor(name)
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            raise SystemExit(f"{name}: {a.dtype} {a.shape} and {b.dtype} {b.shape}")
        wrong += int((a.view(torch.int16) != b.view(torch.int16)).sum())
        total += a.numel()
    return wrong, total


def summarise(runs: list[dict[str, dict[str, float]]], facts: dict[str, Any]) -> dict[str, Any]:
    """Return medians, and whether the goals are met."""
    medians = {
        kind: {key: statistics.median(run[kind][key] for run in runs) for key in runs[0][kind]}
        for kind in KINDS
    }
    ratios = [run["peft"]["wall_s"] / run["mudpuppy"]["wall_s"] for run in runs]
    extra = medians["mudpuppy"]["extra_mb"] - facts["adapter_mb"]
    is_met = {
        "at least 3x faster end to end": statistics.median(ratios) >= GOALS["speed"],
        "at most adapter + 128 MB": extra <= GOALS["extra_mb_over_adapter"],
        "output bit-identical": facts["weights_that_differ"] == 0,
    }
    return {**facts, "medians": medians, "speedups": ratios, "goals": is_met, "runs": runs}


def to_markdown(result: dict[str, Any]) -> str:
    """Return the table that people read."""
    lines = [
        "# Merging a LoRA adapter",
        "",
        f"Random Llama, {result['weights'] / 1e6:.0f} M weights, {result['base_mb'] / 1e3:.2f} GB "
        f"bf16 in {result['base_files']} files; rank {RANK} on all linear layers, adapter "
        f"{result['adapter_mb']:.1f} MB. {len(result['runs'])} interleaved runs in fresh "
        f"processes, medians; {result['threads']} thread(s) for PEFT, one for mud-puppy. Load "
        f"average before: {result['load_average']:.1f} on {result['cpus']} cores; where that is "
        "more than the cores, wall times are stretched, and cpu seconds say more.",
        "",
        "| | wall (end to end) | import | merge and save | cpu | peak memory over imports |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    labels = {
        "peft": "PEFT: load, `merge_and_unload`, save",
        "mudpuppy": "`mud-puppy merge` (with fsync)",
        "cp": "`cp -r` of the base",
    }
    for kind in KINDS:
        m = result["medians"][kind]
        cells = [f"{m['wall_s']:.2f} s"]
        cells += [f"{m[k]:.2f} s" if k in m else "-" for k in ("import_s", "merge_s", "cpu_s")]
        cells.append(f"{m['extra_mb']:.0f} MB" if "extra_mb" in m else "-")
        lines.append(f"| {labels[kind]} | {' | '.join(cells)} |")
    speedups = ", ".join(f"{ratio:.1f}" for ratio in result["speedups"])
    lines += [
        "",
        f"Times as fast as PEFT end to end, pair by pair: {speedups}. Weights that differ in any "
        "bit: "
        f"{result['weights_that_differ']} of {result['weights']:,}.",
        "",
        *(f"- {goal}: {'met' if met else 'NOT met'}" for goal, met in result["goals"].items()),
        "",
        f"Python {result['python']}, "
        + ", ".join(f"{name} {number}" for name, number in result["versions"].items())
        + f"; {result['platform']}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the benchmark; exit code 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(run_child(args.child, args.folder)))
        return 0
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_models(folder)
        runs = []
        for number in range(args.runs):
            runs.append({kind: measure(kind, folder, args.threads) for kind in KINDS})
            print(f"run {number + 1}: " + json.dumps(runs[-1]), flush=True)
        wrong, total = count_differences(folder / "peft", folder / "mudpuppy")
        files = list((folder / "base").glob("*.safetensors"))
        adapter = folder / "adapter" / "adapter_model.safetensors"
        facts = {
            "weights": total,
            "weights_that_differ": wrong,
            "base_mb": sum(file.stat().st_size for file in files) / 1e6,
            "base_files": len(files),
            "adapter_mb": adapter.stat().st_size / 1e6,
            "threads": args.threads,
            "cpus": os.cpu_count(),
            "load_average": load,
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}",
            "versions": {name: version(name) for name in PACKAGES},
        }
    result = summarise(runs, facts)
    args.output.mkdir(parents=True, exist_ok=True)
    text = to_markdown(result)
    (args.output / "merge.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (args.output / "merge.md").write_text(text, encoding="utf-8")
    print(text)
    return 0 if all(result["goals"].values()) else 1


ROOT = Path(__file__).resolve().parents[1]

if __name__ == "__main__":
    sys.exit(main())
