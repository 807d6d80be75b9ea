"""The command `mud-puppy estimate`: the memory of a run, part by part, and what would fit."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from mudpuppy.config import TrainingConfig
from mudpuppy.config_check import load_config
from mudpuppy.errors import ConfigError, ModelError
from mudpuppy.flags import add_training_flags, typed_settings
from mudpuppy.tiny import is_tiny_name, resolve_model

if TYPE_CHECKING:
    from mudpuppy.estimate.advice import Option
    from mudpuppy.estimate.predict import Part, Prediction

DESCRIPTION = "Predict the peak memory of a run from the model's configuration alone."
WITHOUT_WEIGHT = ("gradient_checkpointing", "stream", "zero_offload")
"""Settings that change where tensors lie and not which there are."""
_MEMORY = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(?:([GM])i?B?)?", re.IGNORECASE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the model, every setting of a run, and the flags of the command."""
    parser.add_argument("model", help="folder or config.json, cached hub id, or tiny")
    parser.add_argument(
        "--memory", metavar="SIZE", help="memory of the device, such as 24GB; says what would fit"
    )
    parser.add_argument(
        "--devices", type=int, default=1, metavar="N", help="devices that train together"
    )
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="form of the output"
    )
    add_training_flags(parser, skip=("output",))


def run(args: argparse.Namespace) -> int:
    """Run the parsed command; 1 where the run does not fit into `--memory`, 0 otherwise.

    Raises:
        ConfigError: a setting or the size of the memory makes no sense.
        UnsupportedCombination: the rule table refuses the settings.
        ModelError: the configuration cannot be read, or the model not be laid out.
    """
    memory = None if args.memory is None else parse_memory(args.memory)
    typed = {**typed_settings(args), "dataset": "data.jsonl", "output": "out"}
    if typed.get("method") in ("grpo", "rl"):
        typed.setdefault("reward_funcs", ["length"])  # takes no memory, and a run needs one
    config = load_config(typed)
    if args.devices < 1:
        raise ConfigError([f"--devices: {args.devices} is no number of devices"])
    settings = read_model_settings(args.model, config.trust_remote_code)

    from mudpuppy.estimate.advice import find_options, fits

    on_cpu = config.device == "cpu"
    predicting = Predictor(on_cpu=on_cpu, devices=args.devices)
    made = predicting(settings, config)
    is_enough = memory is None or fits(made, memory)
    options = (
        [] if memory is None or is_enough else find_options(settings, config, memory, predicting)
    )
    if args.format == "json":
        report = {**made.to_json(), "memory": memory, "fits": is_enough}
        report["options"] = [vars(option) for option in options]
        print(json.dumps(report, indent=2))
    else:
        print("\n".join(describe(made, config, on_cpu=on_cpu)))
        if memory is not None:
            print("\n".join(_verdict(made, memory, is_enough, options)))
    return int(not is_enough)


class Predictor:
    """Predicts, and lays a model out only once where settings change nothing about its tensors."""

    def __init__(self, *, on_cpu: bool, devices: int = 1) -> None:
        self.on_cpu = on_cpu
        self.devices = devices
        self._layouts: dict[str, Any] = {}

    def __call__(self, settings: Any, config: TrainingConfig) -> Prediction:
        """Return the prediction for one model; see `mudpuppy.estimate.predict.predict`."""
        from mudpuppy.estimate.layout import lay_out
        from mudpuppy.estimate.predict import batch_of, finish_prediction, require_predictable

        require_predictable(config, self.devices)
        plain = config.model_copy(update=dict.fromkeys(WITHOUT_WEIGHT, False))
        key = plain.model_dump_json()
        if key not in self._layouts:
            batch, length = batch_of(config)
            self._layouts[key] = lay_out(settings, config, batch=batch, length=length)
        return finish_prediction(
            self._layouts[key], config, on_cpu=self.on_cpu, devices=self.devices
        )


def parse_memory(text: str) -> int:
    """Return bytes; GB and GiB are both 2**30, since a card of "24 GB" has 24 GiB.

    Raises:
        ConfigError: it is no size.
    """
    found = _MEMORY.fullmatch(text.strip())
    size = float(found[1]) * (2**20 if (found[2] or "G").upper() == "M" else 2**30) if found else 0
    if size < 1:
        raise ConfigError([f"--memory: '{text}' is no size"], hint="write it like 24GB or 512MB")
    return int(size)


def read_model_settings(name: str, trust_remote_code: bool = False) -> Any:
    """Return the configuration of a folder, a config.json, the embedded model or a cached hub id.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    from transformers import AutoConfig

    path = resolve_model(name) if is_tiny_name(name) else str(Path(name).expanduser())
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise ModelError(f"{name} holds no config.json", hint="name a model folder")
    try:
        return AutoConfig.from_pretrained(
            path, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:
        line = str(error).strip().partition("\n")[0][:300]
        raise ModelError(
            f"{name}: the configuration cannot be read: {line}",
            hint="nothing is downloaded here: name a folder, a config.json, or a hub id that is "
            "in the cache",
        ) from error


def describe(made: Prediction, config: TrainingConfig, *, on_cpu: bool) -> Iterator[str]:
    """Yield the table of the parts and the totals."""
    layout = made.layout
    yield (
        f"{config.method}, {config.precision}: trains {layout.trainable:,} of "
        f"{layout.parameters + layout.adapter // 4:,} parameters, batch {config.batch_size} x "
        f"{config.max_length} tokens"
    )
    yield ""
    where = "host" if on_cpu else "device"
    rows = [_row(part) for part in made.parts]
    rows.append(["training", *_totals(made.parts), ""])
    if made.merge:
        rows.append(["afterwards", *_totals(made.merge), "the trained model, saved or merged"])
    if on_cpu:
        rows = [[name, size, what] for name, size, _, what in rows]
        yield tabulate(rows, headers=["part", "host", "what"], colalign=("left", "right", "left"))
    else:
        headers = ["part", "device", "host", "what"]
        yield tabulate(rows, headers=headers, colalign=("left", "right", "right", "left"))
    yield ""
    more = f", {_size(made.host)} more on the host" if made.host else ""
    each = f" of each of {made.devices} processes" if made.devices > 1 else ""
    yield f"peak: {_size(made.device)} on the {where}{each}{more}"


def _row(part: Part) -> list[str]:
    host = _size(part.host) if part.host else ""
    return [part.name, _size(part.device) if part.device else "", host, part.why]


def _totals(parts: tuple[Part, ...]) -> list[str]:
    host = sum(part.host for part in parts)
    return [_size(sum(part.device for part in parts)), _size(host) if host else ""]


def _verdict(
    made: Prediction, memory: int, is_enough: bool, options: list[Option]
) -> Iterator[str]:
    """Yield whether it fits, and what would."""
    from mudpuppy.estimate.advice import HEADROOM

    room = f"{_size(memory)} with {1 - HEADROOM:.0%} left free"
    yield f"{'fits' if is_enough else 'does not fit'} into {room}"
    if is_enough:
        return
    for option in options:
        host = f" and {_size(option.host)} on the host" if option.host else ""
        yield f"  would fit: {option.flags}   ({_size(option.device)}{host})"
    if not options:
        least = "a smaller model, a shorter --max-length, or more memory"
        yield f"  nothing that was tried fits; what is left: {least}"


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.2f} MiB"
