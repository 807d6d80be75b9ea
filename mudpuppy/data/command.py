"""The command `mud-puppy data`: what a dataset is, what a model learns from it, what is cut off."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from mudpuppy.config import TrainingConfig
from mudpuppy.config_check import check_values, flag_of
from mudpuppy.data.facts import TokenFacts, duplicates, measure, summarise, to_json
from mudpuppy.data.read import DatasetRead, read_dataset
from mudpuppy.data.samples import KINDS_OF_METHOD, PromptSample, Sample
from mudpuppy.data.show import Marks, describe
from mudpuppy.data.system_prompt import with_system
from mudpuppy.errors import DatasetError, UsageError
from mudpuppy.features import METHODS
from mudpuppy.tuning import advise

DESCRIPTION = (
    "Say what a dataset is and, with --model, what the model would learn from it: one sample with "
    "its trained tokens marked, lengths, shares of trained and EOS tokens, and what is cut off."
)
USUAL_METHOD = {
    **dict.fromkeys(("chat", "text", "completion"), "lora"),
    "preference": "dpo",
    "kto": "kto",
    "prompts": "grpo",
    "steps": "prm",
    "multimodal": "multimodal",
}
"""The method whose rendering is shown when none is named."""
UNBOUNDED = 16_777_216
"""Tokens to which nothing is cut: the largest `--max-length`."""
JSON_SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Example:
    """The sample that is shown."""

    line: int
    ids: list[int]
    trained: list[bool]
    """Whether each token is trained."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the arguments of the command."""
    parser.add_argument("dataset", help="JSONL, JSON or Parquet file, folder or hub id")
    parser.add_argument("--model", metavar="MODEL", help="its tokenizer and template; no weights")
    parser.add_argument("--method", choices=METHODS, metavar="METHOD", help="|".join(METHODS))
    parser.add_argument("--max-length", default=argparse.SUPPRESS, metavar="N", help="tokens kept")
    for name, text in (
        ("chat-template", "apply the model's chat template"),
        ("response-only", "train the answers and not the prompts"),
    ):
        parser.add_argument(
            f"--{name}", action=argparse.BooleanOptionalAction, default=True, help=text
        )
    parser.add_argument(
        "--system-prompt", metavar="TEXT", help="what conversations without one begin with"
    )
    parser.add_argument("--line", type=int, metavar="N", help="show the sample of this line")
    parser.add_argument(
        "--limit", type=int, default=5000, metavar="N", help="samples to render (default: 5000)"
    )
    parser.add_argument("--format", choices=("text", "json"), default="text")


def run(args: argparse.Namespace) -> int:
    """Run the parsed command and return its exit code.

    Raises:
        UsageError: the dataset, the model or a setting cannot be used.
    """
    if args.limit < 1:
        raise UsageError("--limit must be 1 or more")
    read = read_dataset(args.dataset, args.method)
    read = replace(read, samples=with_system(read.samples, args.system_prompt))
    shown = _pick(read, args.line)
    config = _settings(args, read.kind) if args.model else None
    repeated = duplicates(read.samples)
    facts = example = tokenizer = None
    if config is not None:
        config, loaded = _open(config)
        facts, example = _render(config, loaded, read, shown, args.limit)
        tokenizer = loaded.tokenizer
    if args.format == "json":
        print(json.dumps(_as_json(read, repeated, config, facts, example, tokenizer), indent=2))
        return 0
    tokens = None if example is None else _decode(tokenizer, example)
    for line in describe(
        read,
        shown,
        repeated,
        facts=facts,
        config=config,
        tokens=tokens,
        marks=Marks.for_stream(sys.stdout),
        has_template=args.chat_template and bool(getattr(tokenizer, "chat_template", None)),
    ):
        print(line)
    return 0


def _pick(read: DatasetRead, line: int | None) -> Sample:
    """Return the sample to show: the one of the line, or the first."""
    if line is None:
        return read.samples[0]
    for sample in read.samples:
        if sample.line == line:
            return sample
    raise DatasetError(f"has no sample at {read.unit} {line}", file=read.where, line=line)


def _settings(args: argparse.Namespace, kind: str) -> TrainingConfig:
    """Return the settings that matter to rendering."""
    values = {
        "model": args.model,
        "dataset": args.dataset,
        "output": "unused",
        "method": args.method or USUAL_METHOD[kind],
        "chat_template": args.chat_template,
        "response_only": args.response_only,
    }
    if values["method"] == "grpo":
        values["reward_funcs"] = ("unused",)
    if hasattr(args, "max_length"):
        values["max_length"] = args.max_length
    return check_values(values, name=flag_of)


def _open(config: TrainingConfig) -> tuple[TrainingConfig, Any]:
    """Open what rendering needs of the model; return the settings as the model bounds them."""
    from mudpuppy.preflight import check_model

    check_model(config.model)
    from transformers.utils import logging

    from mudpuppy.loading import open_for_text, within_positions
    from mudpuppy.methods.family import find_family
    from mudpuppy.tiny import resolve_model

    logging.set_verbosity_error()  # it warns of long samples, which are told of below
    loaded = open_for_text(resolve_model(config.model), config, find_family(config.method).form)
    return within_positions(config, loaded.model), loaded


def _render(
    config: TrainingConfig, loaded: Any, read: DatasetRead, shown: Sample, limit: int
) -> tuple[TokenFacts, Example | None]:
    """Render samples as training does, one by one, whole and cut."""
    from mudpuppy.data.render_pairs import render_prompts
    from mudpuppy.methods.family import find_family
    from mudpuppy.methods.sft import make_renderer

    family = find_family(config.method)
    unbounded = config.model_copy(update={"max_length": UNBOUNDED})

    def row(sample: Sample, settings: TrainingConfig) -> Any | None:
        """Return the rendered sample, or None where nothing of it is trained."""
        if isinstance(sample, PromptSample):  # its own rendering asks for reward functions
            return render_prompts(make_renderer(loaded, settings), [sample], read.where)[0]
        try:
            rows = family.render(loaded, [sample], settings)
        except DatasetError as error:
            if error.line is None:  # nothing is left to train: that is counted, and no error
                return None
            raise
        return rows[0] if rows else None

    measured = []
    for sample in _spread(read.samples, limit):
        whole = row(sample, unbounded)
        is_short = whole is not None and len(whole.input_ids) <= config.max_length
        cut = whole if is_short else row(sample, config)
        measured.append(measure(sample.line, whole, cut, loaded.eos_ids))
    one = row(shown, config)
    example = one and Example(
        line=shown.line, ids=one.input_ids, trained=[label != -100 for label in one.labels]
    )
    return summarise(measured), example


def _spread(samples: tuple[Sample, ...], limit: int) -> Iterator[Sample]:
    """Yield at most `limit` samples, evenly from the first to the last."""
    step = max(1.0, len(samples) / limit)
    for index in range(min(limit, len(samples))):
        yield samples[int(index * step)]


def _decode(tokenizer: Any, example: Example) -> list[tuple[str, bool]]:
    """Return the example as texts of tokens that are trained together, or not."""
    parts: list[tuple[list[int], bool]] = []
    for token, on in zip(example.ids, example.trained, strict=True):
        if not parts or parts[-1][1] != on:
            parts.append(([], on))
        parts[-1][0].append(token)
    return [(tokenizer.decode(ids, clean_up_tokenization_spaces=False), on) for ids, on in parts]


def _as_json(
    read: DatasetRead,
    repeated: tuple[int, ...],
    config: TrainingConfig | None,
    facts: TokenFacts | None,
    example: Example | None,
    tokenizer: Any,
) -> dict[str, Any]:
    """Return everything the text says, for programs."""
    result: dict[str, Any] = {
        "schema_version": JSON_SCHEMA_VERSION,
        "dataset": read.where,
        "kind": read.kind,
        "format": read.format,
        "container": read.container,
        "unit": read.unit,
        "samples": len(read.samples),
        "methods": [name for name, kinds in KINDS_OF_METHOD.items() if read.kind in kinds],
        "duplicates": repeated,
        "advice": vars(advise(len(read.samples))),
    }
    if config is None or facts is None:
        return result
    rendered = {"model": config.model, "method": config.method, "max_length": config.max_length}
    result["rendered"] = {**rendered, **to_json(facts)}
    if example is not None:
        parts = [{"text": t, "trained": on} for t, on in _decode(tokenizer, example)]
        result["example"] = {"line": example.line, "parts": parts}
    return result
