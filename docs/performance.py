"""Write docs/performance.md: which method to take for which GPU, as `mud-puppy estimate` predicts.

python docs/performance.py            print it, from the kept predictions
python docs/performance.py --write    put it into docs/performance.md
python docs/performance.py --predict  predict everything anew (minutes), then write
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

KEPT = ROOT / "docs/performance.json"
TOKENS = 2048
GIB = 2**30


class Model(NamedTuple):
    """The shape of a model that people train."""

    name: str
    width: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int
    is_tied: bool = False


MODELS = (
    Model("1B", 2048, 8192, 16, 32, 8, 128_256, is_tied=True),
    Model("3B", 3072, 8192, 28, 24, 8, 128_256, is_tied=True),
    Model("8B", 4096, 14_336, 32, 32, 8, 128_256),
    Model("14B", 5120, 17_408, 40, 40, 8, 151_936),
    Model("32B", 5120, 25_600, 64, 64, 8, 151_936),
    Model("70B", 8192, 28_672, 80, 64, 8, 128_256),
)
"""Sizes in which open models come; a Llama of that shape stands for its neighbours."""
GPUS = (
    (8, "RX 7600, RTX 4060"),
    (12, "RX 6700 XT, RTX 4070"),
    (16, "RX 9070 XT, RX 7800 XT, RTX 4080"),
    (24, "RX 7900 XTX, RTX 4090"),
    (48, "Radeon Pro W7900, RTX 6000 Ada"),
    (64, "Instinct MI210"),
    (80, "A100, H100"),
    (192, "Instinct MI300X, B200"),
)
"""Memory in GiB, and cards that have it; AMD's first."""
ADAPTERS = ("lora", "qlora")
EVERYTHING = ("full", "full --zero-offload", "full --stream")
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "gradient_checkpointing": True},
    "qlora": {"method": "qlora", "gradient_checkpointing": True},
    "full": {"method": "full", "gradient_checkpointing": True},
    "full --zero-offload": {
        "method": "full",
        "gradient_checkpointing": True,
        "zero_offload": True,
    },
    "full --stream": {"method": "full", "stream": True},
}
"""What is predicted for every model, from the least painful to the last resort in each group."""


def predict_model(model: Model) -> dict[str, dict[str, int]]:
    """Return device and host bytes of every method for one model."""
    from transformers import LlamaConfig

    from mudpuppy.config_check import load_config
    from mudpuppy.estimate.command import Predictor

    settings = LlamaConfig(
        vocab_size=model.vocabulary,
        hidden_size=model.width,
        intermediate_size=model.inner,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.key_heads,
        head_dim=128 if model.width >= 3072 else 64,
        max_position_embeddings=TOKENS,
        tie_word_embeddings=model.is_tied,
    )
    predicting = Predictor(on_cpu=False)
    found = {}
    for name, changes in METHODS.items():
        given = {
            "model": "model",
            "dataset": "data.jsonl",
            "output": "out",
            "precision": "bf16",
            "batch_size": 1,
            "max_length": TOKENS,
            "merge_lora": False,
            **changes,
        }
        made = predicting(settings, load_config(given))
        found[name] = {"device": made.device, "host": made.host}
    return found


def page(kept: dict[str, dict[str, dict[str, int]]]) -> str:
    """Return the whole page from the predictions."""
    return "\n".join(_lines(kept)).rstrip() + "\n"


def _lines(kept: dict[str, dict[str, dict[str, int]]]) -> Iterator[str]:
    from mudpuppy.estimate.advice import HEADROOM

    yield "# Which method for which GPU"
    yield ""
    yield (
        "Written by `python docs/performance.py --predict` with what `mud-puppy estimate` predicts "
        f"for bf16, one sample of {TOKENS} tokens at a time and gradient checkpointing, on models "
        f"of Llama's shape. A method is named where its peak leaves {1 - HEADROOM:.0%} of the "
        "memory free. For your own model, length and batch ask for yourself:"
    )
    yield from ("", "```sh")
    yield "mud-puppy estimate MODEL --method qlora --gradient-checkpointing --memory 16GB"
    yield from ("```", "", "In short:", "")
    yield from _short(kept, HEADROOM)
    yield from ("", "## An adapter", "")
    yield (
        "`lora` where the 16-bit base fits: it is the faster one. Else `qlora`, which holds the "
        "base in 4 bits. Both make an adapter of some megabytes, which `mud-puppy merge` folds in."
    )
    yield ""
    yield from _table(kept, ADAPTERS, HEADROOM)
    yield from ("", "## All weights", "")
    yield (
        "`full` where everything fits: fp32 weights, gradients and AdamW's two moments are 16 "
        "bytes a parameter. Else `--zero-offload`, which keeps the moments in the memory of the "
        "host; else `--stream`, which keeps the layers there, too. The number is what the host "
        "then needs, in GiB. Time is paid for it: every layer travels over the bus in each step, "
        "which is hidden only behind enough tokens."
    )
    yield ""
    yield from _table(kept, EVERYTHING, HEADROOM)
    yield from ("", "## The figures", "", "Predicted peak on the device, in GiB:", "")
    yield "| model | " + " | ".join(f"`{name}`" for name in METHODS) + " |"
    yield "| --- |" + " ---: |" * len(METHODS)
    for model, methods in kept.items():
        cells = (f"{methods[name]['device'] / GIB:.1f}" for name in METHODS)
        yield f"| {model} | {' | '.join(cells)} |"
    yield from ("", "## How far a prediction is to be trusted", "")
    yield from _trust()
    yield from ("", "## How fast it is", "")
    yield (
        "[`benchmarks/results/table.md`](../benchmarks/results/table.md) holds every measured "
        "figure against the best other way, and [decisions.md](decisions.md) why some fall short."
    )
    if (ROOT / "benchmarks/results/cost.svg").is_file():
        yield ""
        yield "Cost against size:"
        yield ""
        yield "![time and memory by layers, weights, tokens](../benchmarks/results/cost.svg)"


def _short(kept: dict[str, dict[str, dict[str, int]]], headroom: float) -> Iterator[str]:
    """Yield the largest model of each method by card."""
    names = ("full", "lora", "qlora")
    yield "| GPU memory | cards | " + " | ".join(f"largest with `{name}`" for name in names) + " |"
    yield "| --- | --- |" + " --- |" * len(names)
    for memory, cards in GPUS:
        cells = []
        for name in names:
            fitting = [
                model
                for model, methods in kept.items()
                if methods[name]["device"] <= headroom * memory * GIB
            ]
            cells.append(fitting[-1] if fitting else "-")
        yield f"| {memory} GB | {cards} | {' | '.join(cells)} |"


def _table(
    kept: dict[str, dict[str, dict[str, int]]], names: tuple[str, ...], headroom: float
) -> Iterator[str]:
    """Yield the first method of a group that fits, for every card and model."""
    yield "| GPU memory | " + " | ".join(kept) + " |"
    yield "| --- |" + " --- |" * len(kept)
    for memory, _ in GPUS:
        cells = []
        for methods in kept.values():
            room = headroom * memory * GIB
            fitting = [name for name in names if methods[name]["device"] <= room]
            cells.append(_cell(fitting[0], methods[fitting[0]]["host"]) if fitting else "-")
        yield f"| {memory} GB | {' | '.join(cells)} |"


def _cell(name: str, host: int) -> str:
    return f"`{name.removeprefix('full ')}`" + (f" {host / GIB:.0f}" if host else "")


def _trust() -> Iterator[str]:
    """Yield how predictions compare with what the measured runs held."""
    path = ROOT / "benchmarks/results/rows/cost.json"
    if not path.is_file():
        yield "Not measured yet: `python -m benchmarks.table cost`."
        return
    result = json.loads(path.read_text(encoding="utf-8"))
    yield (
        f"Measured against real runs on a processor ({result['facts']['base']}; "
        f"{result['date']}), where small models make every fixed cost large: memory that was held "
        "from the first step to the last, over the predicted one."
    )
    yield from ("", "| method | models | held / predicted, median | smallest | largest | MB more |")
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for method in ("lora", "qlora", "full", "stream"):
        points = [
            (one["held_mb"], one["predicted_mb"])
            for name, side in result["sides"].items()
            for one in side.get("samples", ())
            if name.endswith(f": {method}") and "held_mb" in one
        ]
        ratios = [held / predicted for held, predicted in points]
        more = statistics.median(held - predicted for held, predicted in points)
        figures = (statistics.median(ratios), min(ratios), max(ratios))
        shown = " | ".join(f"{figure:.2f}" for figure in figures)
        yield f"| `{method}` | {len(ratios)} | {shown} | {more:.0f} |"
    yield ""
    yield (
        "Weights, adapter, gradients and optimizer states are counted to the byte; activations "
        "come from a forward pass with fake tensors; working memory and what a GPU's libraries "
        "take are rules of thumb, named so by `mud-puppy estimate`."
    )


if __name__ == "__main__":
    options = sys.argv[1:]
    if options == ["--predict"]:
        predicted = {model.name: predict_model(model) for model in MODELS}
        KEPT.write_text(json.dumps(predicted, indent=1) + "\n", encoding="utf-8")
    text = page(json.loads(KEPT.read_text(encoding="utf-8")))
    if options in (["--write"], ["--predict"]):
        (ROOT / "docs/performance.md").write_text(text, encoding="utf-8")
    else:
        print(text, end="")
