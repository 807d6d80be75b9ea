"""Which probes must have answered before a cell passes: by trial, method and features.

A probe that was skipped said nothing; a cell that passes on silence would be worth nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from harness.matrix import Cell

ALWAYS = ("MPD701", "MPD702", "MPD707", "MPD708", "MPD711", "MPD712", "MPD713", "MPD714", "MPD715")
"""What moved, reload, effect, save, settings, tokenizer, files, warnings."""
OF_THE_ENGINE = ("MPD717",)
"""Deprecation warnings of our own calls."""
TRAINED = ("MPD703", "MPD704", "MPD706", "MPD720", "MPD750", "MPD752", "MPD753")
"""For methods with an optimizer: what was trainable and in which type, the objective, the rows,
their use and order, the record."""
PREDICTED = ("MPD718",)
"""Where the engine predicts the memory: it does not for layers that are spread over devices."""
TWINNED = ("MPD724", "MPD725", "MPD726", "MPD728")
"""Where the run was trained once more in plain torch: rate, rows, weights, what was kept."""
COMPARED = ("MPD722", "MPD723")
"""The same where nothing is random in a step: loss and gradient."""
QUANTISED = ("MPD710", "MPD751", "MPD752")
"""For GPTQ: the error of each layer, the declared format, the record."""
MERGED = ("MPD401", "MPD403", "MPD404")
"""Where a merged model was promised: that the adapter's change is in it, once and unrounded."""
SPEAKING = ("MPD716",)
"""Where one batch is generated: it is finite, and no worse than the base's."""
ENDING = ("MPD705",)
"""Where the end of an answer is taught or scored."""
WITHOUT_ENDS = ("grpo", "prm")
"""Methods that neither teach nor score it: answers are generated; steps end in newlines."""
SCORERS = ("rm", "prm")
"""Methods whose models say nothing."""
BY_TRIAL: Mapping[str, tuple[str, ...]] = {
    "fault": ("MPD730", "MPD731", "MPD732", "MPD733", "MPD734"),
    "lifecycle": ("MPD735", "MPD736", "MPD737", "MPD738", "MPD739"),
    "soak": ("MPD740", "MPD741"),
    "limits": ("MPD742", "MPD743"),
    "interop": ("MPD744", "MPD745"),
    "versions": ("MPD748", "MPD749"),
    "curriculum": ("MPD754", "MPD755", "MPD756"),
}
"""For the trials that are no ordinary training."""


def required_probes(cell: Cell) -> tuple[str, ...]:
    """Return the codes of the probes that must have answered before the cell passes."""
    if cell.trial != "training":
        return BY_TRIAL[cell.trial]
    return tuple(sorted({*ALWAYS, *OF_THE_ENGINE, *_of_training(cell)}))


def _of_training(cell: Cell) -> Iterable[str]:
    config, method = cell.config, cell.config["method"]
    if method == "gptq":
        yield from QUANTISED
    else:
        yield from TRAINED
        if not config.get("device_map"):
            yield from PREDICTED
        yield from _of_twin(config)
        if _is_resumed(cell):
            yield "MPD727"
    if method not in (*WITHOUT_ENDS, "gptq"):
        yield from ENDING
    if config.get("merge_lora"):
        yield from MERGED
    if "tensorboard" in (config.get("report_to") or ()):
        yield "MPD719"
    if cell.options.get("behaviour") == "quick" and method not in SCORERS:
        yield from SPEAKING
    if config.get("early_stopping") is not None:
        yield "MPD709"


def _of_twin(config: Mapping[str, Any]) -> Iterable[str]:
    """Yield what the twin must have answered; tensors that are sharded have none."""
    if config.get("fsdp") not in (None, "none"):
        return
    yield from TWINNED
    if not config.get("lora_dropout"):
        yield from COMPARED
    if config.get("merge_lora"):
        yield "MPD729"


def _is_resumed(cell: Cell) -> bool:
    """Whether the twin can be killed after a checkpoint and resumed.

    A run that must stop early may be over before the step after its first checkpoint.
    """
    saves, steps = cell.config.get("save_steps"), cell.config.get("max_steps")
    if cell.config.get("fsdp") not in (None, "none") or cell.expect.stops_early:
        return False
    return saves is not None and steps is not None and saves < steps
