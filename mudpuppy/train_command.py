"""The command `mud-puppy MODEL DATASET`: train, from the words to the closing lines."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mudpuppy import team
from mudpuppy.checkpoints import find_fault, list_checkpoints
from mudpuppy.config_check import flag_of, load_config, unread_settings
from mudpuppy.errors import EngineError, UsageError, printable
from mudpuppy.flags import add_training_flags, typed_settings
from mudpuppy.interruption import describe as describe_end
from mudpuppy.logs import LOG_FOLDERS
from mudpuppy.parser import FriendlyParser, wide_help
from mudpuppy.records import RunRecord
from mudpuppy.telling import how_to_check, hush_libraries, print_error, report_step, say
from mudpuppy.yamlfile import find_lines, read_settings

NUM_LEFT = 8
"""Files that are named when a run did not end."""

EPILOG = """\
commands:
  mud-puppy MODEL DATASET ...   train (this help)
  mud-puppy explain ...         say whether method, precision and features work together
  mud-puppy data DATASET ...    say what a dataset is, and what a model learns from it
  mud-puppy curriculum ...      SFT, then DPO, topic by topic; stages are examined, kept or undone
  mud-puppy merge ...           fold an adapter into its base on disk
  mud-puppy export gguf ...     write a model as one GGUF file, quantised in one pass
  mud-puppy serve FILE.gguf     put a model behind llama.cpp's OpenAI-compatible server
  mud-puppy env                 what this machine is, which traps it is in, and what to type
  mud-puppy estimate MODEL ...  predict the memory of a run from the configuration alone
  mud-puppy presets [NAME]      settings to start from: which there are, what each one sets
  mud-puppy temporal ...        unlearn what came after a year: data to a served GGUF
  mud-puppy tiny build|show     the embedded model that `tiny` names

examples:
  mud-puppy tiny data.jsonl --method lora --precision fp32 --output out
  mud-puppy Qwen/Qwen2.5-14B-Instruct data.jsonl --preset lora-14b-16gb --output out
  mud-puppy Qwen/Qwen2.5-0.5B-Instruct data.jsonl --method qlora --merge-lora --output out
  mud-puppy ./model data.jsonl --config run.yaml --learning-rate 1e-4
"""


def training_parser() -> FriendlyParser:
    """Return the parser of the command."""
    parser = FriendlyParser(
        prog="mud-puppy",
        usage="%(prog)s MODEL DATASET --output DIR [--method METHOD] [setting ...]",
        description="Fine-tune a language model and leave a checkpoint that says how it was made.",
        epilog=EPILOG,
        allow_abbrev=False,
        formatter_class=wide_help,
    )
    parser.add_argument("model", nargs="?", help="folder, hub id, or tiny (the embedded model)")
    parser.add_argument(
        "dataset", nargs="?", help="JSONL, JSON or Parquet file, or a hub id (docs/data.md)"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file with settings")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    add_training_flags(parser)
    return parser


def run(words: list[str]) -> int:
    """Train; everything that can be refused is refused before torch is imported."""
    started = time.monotonic()
    arguments = training_parser().parse_args(words)
    settings = read_settings(arguments.config) if arguments.config else {}
    typed = typed_settings(arguments)
    for name in ("model", "dataset"):
        if typed[name] is None:
            del typed[name]

    def call(field: str) -> str:
        from_file = field in settings and field not in typed
        if not from_file:
            return flag_of(field)
        line = find_lines(arguments.config).get(field)
        return f"{arguments.config}{f':{line}' if line else ''}: '{field}'"

    config = load_config({**settings, **typed}, name=call)

    from mudpuppy.preflight import preflight

    samples = preflight(config)
    is_quiet = arguments.quiet or not team.is_first()
    tell = _be_silent if is_quiet else say
    from mudpuppy.engine import train

    hush_libraries()
    unread = unread_settings(config)
    if unread:
        tell(f"not read by this run: {', '.join(map(call, unread))}")
    report = None if is_quiet else report_step
    try:
        record = train(config, samples=samples, say=tell, report=report)
    except KeyboardInterrupt as error:
        word, code = describe_end(error)
        print(f"\nmud-puppy: {word}, the run is not finished", file=sys.stderr)
        say_what_is_left(config.output)
        return code
    except EngineError as error:
        print_error(error)
        say_what_is_left(config.output)
        return error.exit_code
    if record.merged and team.is_first():
        _write_notes(Path(record.merged), config.system_prompt, tell)
    tell(_summary(record, time.monotonic() - started))
    for line in _curves(config.report_to, config.output):
        tell(line)
    return 0


def _curves(kept_in: Sequence[str], output: Path) -> list[str]:
    """Return what opens the curves of a run."""
    runs = shlex.quote(str(output / LOG_FOLDERS["tensorboard"]))
    return [f"look at the curves: tensorboard --logdir {runs}"] if "tensorboard" in kept_in else []


def _write_notes(merged: Path, system: str | None, tell: Callable[[str], None]) -> None:
    """Write how a merged model is served; what was trained is complete with or without it."""
    from mudpuppy.export.serving_notes import write_notes

    try:
        for path in write_notes(merged, merged, system=system):
            tell(f"how to serve it: {path}")
    except UsageError as error:
        tell(f"nothing was written on how to serve {merged}: {error}")


def say_what_is_left(output: Path) -> None:
    """Name what a run that did not end left behind."""
    names = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
    if names:
        more = f" and {len(names) - NUM_LEFT} more" if len(names) > NUM_LEFT else ""
        left = f"  left in {output}: {', '.join(names[:NUM_LEFT])}{more}"
        print(printable(left), file=sys.stderr)
        if any(not find_fault(folder, deep=False) for _, folder in list_checkpoints(output)):
            print("  go on from the newest: the same command with --resume", file=sys.stderr)


def _be_silent(text: str) -> None:
    del text


def _summary(record: RunRecord, seconds: float) -> str:
    """Return the closing lines: what was made, where, and how to check it.

    Args:
        record: what the run was.
        seconds: how long it took, from reading the data to saving.
    """
    steps = f", {record.train_s:.0f} s of them training" if seconds >= 1 else ""
    lines = [f"saved to {record.output} in {seconds:.0f} s{steps}"]
    if record.stopped_early:
        lines.append(f"stopped early after {record.steps} steps")
    if record.merged:
        lines.append(f"merged model in {record.merged}")
    if record.method == "gptq":
        folder = f"{record.output}/gptq"
        lines.append(
            f"load {folder} with mudpuppy.quant.gptq.load_gptq, or with transformers where "
            "gptqmodel and optimum are installed"
        )
    if record.method == "qat":
        folder = f"{record.output}/int8"
        lines.append(
            f"load {folder} with mudpuppy.quant.int8.load_int8, or with transformers where "
            "compressed-tensors is installed"
        )
    if record.learnt_nothing:
        lines.append(
            "NOTHING WAS LEARNT: in every step the gradient was zero or overflowed"
            + ("; did all answers to a prompt get the same reward?" * (record.method == "grpo"))
        )
    if record.method in ("rm", "prm"):  # a reward model answers nothing
        return "\n".join([*lines, f"check it: mudpuppy-doctor {shlex.quote(record.output)}"])
    return "\n".join([*lines, how_to_check(record.output)])
