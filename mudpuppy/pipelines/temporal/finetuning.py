"""`mud-puppy temporal finetune`: an adapter that answers what it should and refuses the rest."""

from __future__ import annotations

import argparse
import math
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from mudpuppy.checkpoints import find_fault, list_checkpoints
from mudpuppy.config import TrainingConfig
from mudpuppy.config_check import flag_of, load_config
from mudpuppy.data.refusal_pairs import make_pairs, with_refusals
from mudpuppy.data.samples import Sample
from mudpuppy.errors import EngineError, MudpuppyError, OutputError, UsageError
from mudpuppy.interruption import describe
from mudpuppy.pipelines.temporal import runs
from mudpuppy.pipelines.temporal.layout import FILES, KINDS, data_root, default_path
from mudpuppy.pipelines.temporal.records import Record, read_mixed, read_splits, split_dev
from mudpuppy.pipelines.temporal.words import add_flag
from mudpuppy.telling import how_to_check, hush_libraries, report_step, say

DEFAULT_MODEL = "Qwen/Qwen2.5-1.5B-Instruct"
WARMUP = 0.1
"""Share of the steps over which the learning rate rises (seed 003)."""
HELP = "train an adapter that keeps what was before the cutoff and refuses what came after"
EPILOG = """\
examples:
  mud-puppy temporal finetune --dev --epochs 1 --batch_size 2
  mud-puppy temporal finetune --model_name Qwen/Qwen2.5-1.5B-Instruct --epochs 3 \\
      --batch_size 2 --gradient_accumulation_steps 8 --save_steps 100
  mud-puppy temporal finetune --output_dir output/temporal-...-full-20251226_211325 --resume_latest
"""
FLAGS = {
    "model": "model_name",
    "output": "output_dir",
    "max_length": "max_seq_length",
    "gradient_accumulation": "gradient_accumulation_steps",
    "report_to": "wandb",
    "resume": "resume_latest",
    "quant": "use_8bit",
    "unlearn": "objective",
    "retain_kl": "objective",
}
"""Flags of this command by the engine's setting, where they have another name."""
SAME = (
    *("epochs", "batch_size", "learning_rate", "save_steps", "eval_steps", "lora_r", "lora_alpha"),
    *("precision", "seed", "gradient_checkpointing", "max_steps", "device"),
)
"""Settings whose flags have their names, with underscores."""
OBJECTIVES: dict[str, dict[str, Any]] = {
    "refusal": {},
    "kl": {"retain_kl": 1.0},
    "gradient-ascent": {"unlearn": "gradient-ascent"},
    "gradient-ascent-refusal": {"unlearn": "gradient-ascent"},
    "npo": {"unlearn": "npo"},
    "npo-refusal": {"unlearn": "npo"},
    "dpo": {"method": "dpo"},
}
"""Settings of the engine by what is optimised (seed 003, "Next Steps": phases 3 and 4)."""
PRECISIONS = ("fp32", "bf16", "fp16")
PARTS = ("train", "val")
"""What of each kind a full run reads."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the flags and defaults of seed 003, "Phase 2.2", and a few of the engine's."""

    def add(name: str, default: Any, text: str, metavar: str = "N") -> None:
        shown = "" if default is None else f" (default: {default})"
        add_flag(parser, name, default=default, metavar=metavar, help=text + shown)

    add("model_name", DEFAULT_MODEL, "folder, hub id, or `tiny`, the embedded model", "MODEL")
    add("output_dir", None, "run folder; by default output/temporal-MODEL-full|dev-TIME", "DIR")
    add_flag(parser, "dev", action="store_true", help="train on the dev subset, for a quick test")
    for name in ("dev_path", *[one for one in FILES if one != "dev_path"]):
        add(name, str(default_path(name)), name.replace("_", " ") + " file", "FILE")
    add("epochs", 3, "passes over the records")
    add("batch_size", 4, "records in a forward pass")
    add("learning_rate", 2e-4, "peak of the cosine schedule, after a warm-up of a tenth", "X")
    add("max_seq_length", 512, "tokens of a record that are kept")
    add("gradient_accumulation_steps", 4, "forward passes before the weights change")
    add("save_steps", 500, "steps between checkpoints")
    add("eval_steps", 100, "steps between evaluations on the validation records")
    add("lora_r", 16, "rank of the adapter")
    add("lora_alpha", 32, "its alpha: the update is scaled by alpha / rank")
    text = "hold the frozen base in 4 bits (nf4, QLoRA; our own, without bitsandbytes)"
    add_flag(parser, "use_4bit", action="store_true", help=text)
    text = "hold the frozen base in 8 bits (int8, our own)"
    add_flag(parser, "use_8bit", action="store_true", help=text)
    add("resume_from_checkpoint", None, "checkpoint folder to go on from", "DIR")
    text = "go on from the newest complete checkpoint of --output_dir, or of the newest run"
    add_flag(parser, "resume_latest", action="store_true", help=text)
    text = "write to Weights & Biases (offline unless WANDB_MODE says more)"
    add_flag(parser, "wandb", action="store_true", help=text)
    group = parser.add_argument_group("beyond the document")
    text = "what is optimised (default: refusal, by plain fine-tuning)"
    add_flag(group, "objective", choices=tuple(OBJECTIVES), default="refusal", help=text)
    text = "precision of the computation (default: bf16)"
    add_flag(group, "precision", choices=PRECISIONS, default="bf16", help=text)
    add_flag(group, "seed", default=42, metavar="N", help="of every random choice (default: 42)")
    text = "steps to take; overrides --epochs"
    add_flag(group, "max_steps", default=None, metavar="N", help=text)
    text = "recompute activations in the backward pass instead of keeping them"
    add_flag(group, "gradient_checkpointing", action="store_true", help=text)
    text = "auto, cpu or cuda, which also means ROCm (default: auto)"
    add_flag(group, "device", choices=("auto", "cpu", "cuda"), default="auto", help=text)


def run(args: argparse.Namespace) -> int:
    """Train, publish the adapter in `final/`, and return the exit code.

    Raises:
        UsageError: flags, records, model or folder cannot be used; nothing was written.
        EngineError: the run diverged, or its artefact cannot be written.
    """
    output, resumes = choose_output(args)
    if resumes and runs.is_unpublished(output):  # killed while it was published
        return _publish(output)
    with _in_our_words():
        train, held_out = _read(args)
        _say_counts(train, held_out)
        samples, evaluated = _samples(args.objective, train), _samples(args.objective, held_out)
        config = make_config(args, output, resumes, len(samples))

        from mudpuppy.preflight import preflight

        preflight(config, samples)
        if args.resume_from_checkpoint is not None:
            runs.go_on_from(Path(args.resume_from_checkpoint).expanduser())
        try:
            _train(config, samples, evaluated)
        except KeyboardInterrupt as error:
            word, code = describe(error)
            print(f"\nmud-puppy: {word}, the run is not finished", file=sys.stderr)
            if advice := _how_to_go_on(output):
                print(f"  {advice}", file=sys.stderr)
            return code
        except EngineError as error:
            advice = _how_to_go_on(output)
            error.hint = "; ".join(part for part in (error.hint, advice) if part)
            raise
    return _publish(output)


def choose_output(args: argparse.Namespace) -> tuple[Path, bool]:
    """Return the run's folder, and whether a run goes on in it.

    Raises:
        UsageError: flags that exclude each other.
        OutputError: there is nothing to go on from, or the run has ended.
    """
    asked = args.resume_from_checkpoint
    if asked is not None and args.resume_latest:
        raise UsageError(
            "--resume_latest and --resume_from_checkpoint name two checkpoints",
            hint="leave one of them out",
        )
    output = None if args.output_dir is None else Path(args.output_dir).expanduser()
    if asked is not None:
        folder = Path(asked).expanduser()
        output = folder.parent if output is None else output
        if output.resolve() != folder.resolve().parent:
            raise OutputError(
                f"{folder} is a checkpoint of another run than --output_dir {output}",
                hint=f"--output_dir {folder.parent}, or leave --output_dir out",
            )
    elif output is None and args.resume_latest:
        output = runs.newest_run(args.model_name, is_dev=args.dev)
        say(f"resuming the newest run: {output}")
    resumes = asked is not None or args.resume_latest
    if output is None:
        name = runs.run_name(args.model_name, is_dev=args.dev, now=datetime.now())
        output = runs.OUTPUT_ROOT / name
    if resumes and runs.is_finished(output):
        raise OutputError(
            f"the run in {output} is finished: its adapter is {output / runs.FINAL}",
            hint="leave out --resume_latest and --output_dir to train anew",
        )
    return output, resumes


def make_config(
    args: argparse.Namespace, output: Path, resumes: bool, num_train: int
) -> TrainingConfig:
    """Translate the flags into the engine's settings.

    Args:
        args: the parsed flags.
        output: the run's folder.
        resumes: whether a run goes on in it.
        num_train: records to train on, which the length of the warm-up depends on.

    Raises:
        ConfigError: a value is wrong; named by the flag of this command.
    """
    if args.use_4bit and args.use_8bit:
        raise UsageError(
            "--use_4bit and --use_8bit exclude each other", hint="leave one of them out"
        )
    values: dict[str, Any] = {
        "model": args.model_name,
        "dataset": args.dev_path if args.dev else _common_folder(args),
        "output": output,
        "method": "qlora" if args.use_4bit or args.use_8bit else "lora",
        "max_length": args.max_seq_length,
        "gradient_accumulation": args.gradient_accumulation_steps,
        "lr_scheduler": "cosine",
        "report_to": ("wandb",) if args.wandb else (),
        "resume": resumes,
        **{name: vars(args)[name] for name in SAME if vars(args)[name] is not None},
        **({"quant": "int8"} if args.use_8bit else {}),
        **OBJECTIVES[args.objective],
    }
    without = load_config(values, name=_flag)
    return load_config({**values, "warmup_steps": warmup_of(without, num_train)}, name=_flag)


def warmup_of(config: TrainingConfig, num_train: int) -> int:
    """Return a tenth of the steps, rounded up, and at least one step less than all of them."""
    batches = math.ceil(num_train / config.batch_size)
    steps = config.max_steps or math.ceil(
        config.epochs * math.ceil(batches / config.gradient_accumulation)
    )
    return max(0, min(math.ceil(WARMUP * steps), steps - 1))


def _common_folder(args: argparse.Namespace) -> str:
    """Return the folder that the training files share, as the record's name of the dataset."""
    retain, unlearn = Path(args.retain_train).absolute(), Path(args.unlearn_train).absolute()
    shared = next(one for one in retain.parents if unlearn.is_relative_to(one))
    return str(data_root() if shared == data_root().absolute() else shared)


def _read(args: argparse.Namespace) -> tuple[list[Record], list[Record]]:
    if args.dev:
        return split_dev(read_mixed(Path(args.dev_path)), _seed(args))
    return read_splits({f"{k}_{p}": Path(vars(args)[f"{k}_{p}"]) for k in KINDS for p in PARTS})


def _seed(args: argparse.Namespace) -> int:
    """Return the seed for the split; what is no number is refused with the other settings."""
    text = str(args.seed)
    return int(text) if text.isdecimal() else 0


def _samples(objective: str, records: Sequence[Record]) -> list[Sample]:
    samples = [record.sample for record in records]
    if objective != "dpo" and not objective.endswith("-refusal"):
        return list(samples)
    return list(make_pairs(samples) if objective == "dpo" else with_refusals(samples))


def _say_counts(train: Sequence[Record], held_out: Sequence[Record]) -> None:
    def shares(records: Sequence[Record]) -> str:
        counts = [f"{sum(r.kind == kind for r in records)} to {kind}" for kind in KINDS]
        return f"{len(records)} records ({', '.join(counts)})"

    say(f"training on {shares(train)}, evaluating on {shares(held_out)}")


def _train(config: TrainingConfig, samples: Sequence[Sample], held_out: Sequence[Sample]) -> None:
    from mudpuppy.engine import train

    hush_libraries()
    train(
        config,
        samples=samples,
        held_out=held_out,
        keep_checkpoints=True,
        report=report_step,
        say=say,
    )


def _how_to_go_on(output: Path) -> str:
    """Return what to type after a run that did not end, or nothing without a checkpoint."""
    if not any(not find_fault(path, deep=False) for _, path in list_checkpoints(output)):
        return ""
    return f"go on: the same command with --output_dir {shlex.quote(str(output))} --resume_latest"


def _publish(output: Path) -> int:
    results = runs.publish(output)
    for part, figures in results.items():
        losses = {name: value for name, value in figures.items() if name.endswith("loss")}
        said = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
        say(f"{part}: {said or 'no figures'} ({output / runs.RESULTS[part]})")
    say(f"adapter in {output / runs.FINAL}")
    say(how_to_check(output / runs.FINAL))
    return 0


@contextmanager
def _in_our_words() -> Iterator[None]:
    """Let errors of the engine name the flags of this command."""
    try:
        yield
    except MudpuppyError as error:
        error.message, error.hint = _translate(error.message), _translate(error.hint)
        raise


def _translate(text: str) -> str:
    """Replace the flags of the engine where they stand as whole words."""
    for field in (*FLAGS, *SAME):
        text = re.sub(rf"(?<![\w-]){re.escape(flag_of(field))}(?![\w-])", _flag(field), text)
    return text


def _flag(field: str) -> str:
    """Return what a person types here for a setting of the engine."""
    if field in SAME:
        return f"--{field}"
    return f"--{FLAGS[field]}" if field in FLAGS else flag_of(field)
