"""Write docs/presets.md: every preset, and the guide's memory table, checked by estimate.

python docs/presets.py            print it, from the kept predictions
python docs/presets.py --write    put it into docs/presets.md
python docs/presets.py --predict  predict everything anew (minutes), then write
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mudpuppy.config_check import load_config  # noqa: E402
from mudpuppy.presets.loader import Preset, load_presets, load_shapes  # noqa: E402

KEPT = ROOT / "docs/presets.json"
PAGE = ROOT / "docs/presets.md"
GIB = 2**30
Kept = dict[str, dict[str, Any]]
"""Settings and predicted bytes by the name of a preset, or of a row of the guide."""


class Row(NamedTuple):
    """A row of the guide's table of memory (seed 002, Memory Requirements)."""

    shape: str
    rank: int
    memory: int
    batch: int


GUIDE = (
    Row("Qwen2.5-7B", 32, 8, 4),
    Row("Qwen2.5-7B", 64, 10, 4),
    Row("Qwen2.5-14B", 32, 12, 2),
    Row("Qwen2.5-14B", 64, 16, 2),
)
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def settings_of_row(row: Row, method: str) -> dict[str, Any]:
    """Return what a row of the guide asks for: its script's modules, which take the least."""
    return {
        "method": method,
        "precision": "fp16",
        "lora_r": row.rank,
        "lora_alpha": 2 * row.rank,
        "lora_dropout": 0.05,
        "lora_target_modules": ATTENTION,
        "batch_size": row.batch,
        "gradient_checkpointing": True,
        "max_length": 512,
    }


def wanted() -> dict[str, tuple[str, dict[str, Any]]]:
    """Return shape and settings of everything that is predicted, by name."""
    found = {name: (one.shape, dict(one.settings)) for name, one in load_presets().items()}
    for row in GUIDE:
        for method in ("lora", "qlora"):
            found[_row_name(row, method)] = (row.shape, settings_of_row(row, method))
    return found


def _row_name(row: Row, method: str) -> str:
    return f"{row.shape} rank {row.rank} {method}"


def predict(shape: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, int]:
    """Return predicted bytes on the device and on the host, as `mud-puppy estimate` gives them."""
    from transformers import AutoConfig

    from mudpuppy.estimate.command import Predictor

    given = {"model": "model", "dataset": "data.jsonl", "output": "out", **settings}
    model = AutoConfig.for_model(**shape)
    made = Predictor(on_cpu=False)(model, load_config(given))
    return {"device": made.device, "host": made.host}


def predict_all() -> Kept:
    """Return settings and prediction of everything that is wanted."""
    shapes = load_shapes()
    return {
        name: {"shape": shapes[shape], "settings": settings, **predict(shapes[shape], settings)}
        for name, (shape, settings) in wanted().items()
    }


def page(kept: Kept) -> str:
    """Return the whole page from the predictions."""
    return "\n".join(_lines(kept)).rstrip() + "\n"


def _lines(kept: Kept) -> Iterator[str]:
    yield "# Presets"
    yield ""
    yield (
        "Settings to start from, by name. Flags win over `--config`, which wins over the preset; "
        "the run says which preset it began from and what was set otherwise, and so does "
        "`mudpuppy.json`. This page is written by `python docs/presets.py --predict`."
    )
    yield from ("", "```sh", "mud-puppy presets", "mud-puppy presets lora-14b-16gb")
    yield "mud-puppy estimate MODEL --preset lora-14b-16gb --memory 16GB"
    yield "mud-puppy MODEL data.jsonl --preset lora-14b-16gb --epochs 1 --output out"
    yield from ("```", "", "## All of them", "")
    yield (
        "The memory is what `mud-puppy estimate` predicts for a model of that shape, in GiB; every "
        "preset leaves a tenth of its card free. For another model ask for yourself, as above."
    )
    yield from ("", "| preset | model | card | predicted | on the host | what |")
    yield "| --- | --- | ---: | ---: | ---: | --- |"
    for preset in load_presets().values():
        yield _preset_line(preset, kept[preset.name])
    yield from ("", "## The guide's table, checked", "")
    yield (
        "The guide behind the `lora-` presets says what LoRA takes in fp16. Predicted for "
        "the same rank and batch, adapters on the attention layers as in its script, samples of "
        "512 tokens, gradient checkpointing, in GiB:"
    )
    yield from ("", "| model | rank | batch | the guide | `lora` | `qlora` | what holds |")
    yield "| --- | ---: | ---: | ---: | ---: | ---: | --- |"
    for row in GUIDE:
        yield _guide_line(row, kept)
    yield ""
    yield (
        "In fp16 the weights of 7B alone are 14 GiB and those of 14B are 27.5, so no row of it can "
        "be right for an fp16 base; the figures are near those of a 4-bit base, and the presets "
        "hold it so. The guide also prints 4,194,304 trainable parameters for rank 64: on the "
        "attention layers of a 14B model it is 100,663,296, and on all seven kinds of layer "
        "275,251,200."
    )
    yield from ("", "## Warm-up", "")
    yield (
        "The guide's 100 steps must be fewer than the steps of the run, and a run refuses them "
        "otherwise: below 530 samples say `--warmup-steps 10`. The temporal seed asks for 10% of "
        "the steps, which needs the data: `mud-puppy temporal finetune` counts it, a preset cannot."
    )


def _preset_line(preset: Preset, one: Mapping[str, Any]) -> str:
    host = f"{one['host'] / GIB:.1f}" if one["host"] else ""
    figures = f"{preset.memory} GB | {one['device'] / GIB:.1f} | {host}"
    return f"| `{preset.name}` | {preset.shape} | {figures} | {preset.what} |"


def _guide_line(row: Row, kept: Kept) -> str:
    figures = [kept[_row_name(row, method)]["device"] for method in ("lora", "qlora")]
    holds = [
        f"`{name}`"
        for name, figure in zip(("lora", "qlora"), figures, strict=True)
        if figure <= row.memory * GIB
    ]
    said = f"fits with {' and '.join(holds)}" if holds else "fits with neither"
    shown = " | ".join(f"{figure / GIB:.1f}" for figure in figures)
    return f"| {row.shape} | {row.rank} | {row.batch} | {row.memory} | {shown} | {said} |"


if __name__ == "__main__":
    options = sys.argv[1:]
    if options == ["--predict"]:
        KEPT.write_text(json.dumps(predict_all(), indent=1) + "\n", encoding="utf-8")
    text = page(json.loads(KEPT.read_text(encoding="utf-8")))
    if options in (["--write"], ["--predict"]):
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
