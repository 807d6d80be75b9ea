"""mud-puppy: train (default), explain, and the commands that live beside what they are about.

mud-puppy MODEL DATASET --method lora --output OUT
mud-puppy explain --method lora --stream
mud-puppy tiny build
"""

from __future__ import annotations

import errno
import importlib
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from mudpuppy import team
from mudpuppy.checkpoints import find_fault, list_checkpoints
from mudpuppy.config_check import check_values, flag_of, load_config, unread_settings
from mudpuppy.errors import EngineError, MudpuppyError, UsageError, near_names, printable
from mudpuppy.features import METHODS, PRECISIONS
from mudpuppy.flags import add_training_flags, typed_settings
from mudpuppy.interruption import describe as describe_end
from mudpuppy.interruption import raising_when_terminated
from mudpuppy.logs import LOG_FOLDERS
from mudpuppy.parser import FriendlyParser
from mudpuppy.records import RunRecord
from mudpuppy.ruleform import Rule
from mudpuppy.rules import RULES, describe, every_single_feature
from mudpuppy.telling import hush_libraries, mute, report_step, say
from mudpuppy.tiny.names import is_tiny_name
from mudpuppy.yamlfile import find_lines, read_settings

MODULES: dict[str, str] = {
    "curriculum": "mudpuppy.pipelines.curriculum.command",
    "data": "mudpuppy.data.command",
    "env": "mudpuppy.env.command",
    "estimate": "mudpuppy.estimate.command",
    "export": "mudpuppy.export.command",
    "merge": "mudpuppy.adapters.command",
    "presets": "mudpuppy.presets.command",
    "serve": "mudpuppy.serving.command",
    "temporal": "mudpuppy.pipelines.temporal.command",
    "tiny": "mudpuppy.tiny.command",
}
"""Commands that live beside what they are about; each module has a `DESCRIPTION`,
`add_arguments(parser)` and `run(arguments)`, which returns the exit code."""
COMMANDS = ("train", "explain", *MODULES)
TINY_ACTIONS = ("build", "show", "-h", "--help")
"""What follows `tiny` when it is the command and not the model of that name."""

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a person's mistake prints no traceback."""
    words = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name need not fit the terminal
    try:
        with raising_when_terminated():
            code = _pick_command(words)(words)
        sys.stdout.flush()
        return code
    except MudpuppyError as error:
        _print_error(error)
        return error.exit_code
    except BrokenPipeError:
        mute()  # the reader has seen enough, as with `| head`
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            return _crash()
        mute()
        print("mud-puppy: error: cannot print: no space left on the device", file=sys.stderr)
        return MudpuppyError.exit_code
    except KeyboardInterrupt as error:
        word, code = describe_end(error)
        print(f"mud-puppy: {word}; nothing was finished", file=sys.stderr)
        return code
    except Exception:  # noqa: BLE001 - a crash of ours is 3; Python's own 1 would mean findings
        return _crash()


def _crash() -> int:
    """Print what is our own fault, with its traceback, and return the exit code."""
    traceback.print_exc()
    print("mud-puppy: crashed; this is a bug, please report the lines above", file=sys.stderr)
    return 3


def _pick_command(words: list[str]) -> Callable[[list[str]], int]:
    """Return the command's function and take its name off the words."""
    if words[:1] == ["explain"]:
        words.pop(0)
        return _run_explain
    if words and words[0] in MODULES and _is_command(words):
        name = words.pop(0)
        return lambda rest: _run_module(name, rest)
    if words[:1] == ["train"]:
        words.pop(0)
    elif words and not is_tiny_name(words[0]):
        near = near_names(words[0], COMMANDS)
        if near and not Path(words[0]).exists():
            raise UsageError(f"there is no command '{words[0]}'{near}", hint="mud-puppy --help")
    return _run_train


def _training_parser() -> FriendlyParser:
    parser = FriendlyParser(
        prog="mud-puppy",
        usage="%(prog)s MODEL DATASET --output DIR [--method METHOD] [setting ...]",
        description="Fine-tune a language model and leave a checkpoint that says how it was made.",
        epilog=EPILOG,
        allow_abbrev=False,
        formatter_class=_formatter(),
    )
    parser.add_argument("model", nargs="?", help="folder, hub id, or tiny (the embedded model)")
    parser.add_argument(
        "dataset", nargs="?", help="JSONL, JSON or Parquet file, or a hub id (docs/data.md)"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file with settings")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    add_training_flags(parser)
    return parser


def _formatter() -> Any:
    from argparse import RawDescriptionHelpFormatter

    return lambda prog: RawDescriptionHelpFormatter(prog, width=100, max_help_position=30)


def _run_train(words: list[str]) -> int:
    """Train; everything that can be refused is refused before torch is imported."""
    arguments = _training_parser().parse_args(words)
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
        _say_what_is_left(config.output)
        return code
    except EngineError as error:
        _print_error(error)
        _say_what_is_left(config.output)
        return error.exit_code
    if record.merged and team.is_first():
        _write_notes(Path(record.merged), config.system_prompt, tell)
    tell(_summary(record))
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


def _say_what_is_left(output: Path) -> None:
    """Name what a run that did not end left behind."""
    names = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
    if names:
        more = f" and {len(names) - NUM_LEFT} more" if len(names) > NUM_LEFT else ""
        left = f"  left in {output}: {', '.join(names[:NUM_LEFT])}{more}"
        print(printable(left), file=sys.stderr)
        if any(not find_fault(folder, deep=False) for _, folder in list_checkpoints(output)):
            print("  go on from the newest: the same command with --resume", file=sys.stderr)


def _print_error(error: MudpuppyError) -> None:
    if not team.is_first() and not error.is_own:
        return  # the first process says it
    who = "mud-puppy" if team.is_first() else f"mud-puppy (process {team.rank()})"
    print(printable(f"{who}: error: {error}"), file=sys.stderr)


def _be_silent(text: str) -> None:
    del text


def _summary(record: RunRecord) -> str:
    """Return the closing lines: what was made, where, and how to check it."""
    lines = [f"saved to {record.output} in {record.total_s:.0f} s"]
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
    return "\n".join([*lines, f"check it: mudpuppy-doctor {record.output}"])


def _run_explain(words: list[str]) -> int:
    """Print what the rule table says; torch is never imported."""
    parser = FriendlyParser(
        prog="mud-puppy explain",
        description="Say whether a method, a precision and features work together, and why not.",
        allow_abbrev=False,
        formatter_class=_formatter(),
    )
    parser.add_argument("code", nargs="?", help="a rule to explain, such as MP-R07")
    parser.add_argument("--all", action="store_true", help="list every single combination")
    parser.add_argument("--rules", action="store_true", help="list every rule with its code")
    add_training_flags(parser, skip=("output",))
    arguments = parser.parse_args(words)
    if arguments.rules or arguments.code:
        for rule in _rules_named(arguments.code):
            print(
                f"{rule.code} {rule.name}\n  why      {rule.every_reason}\n  instead  {rule.hint}"
            )
        return 0
    if arguments.all:
        return _print_all()
    placeholder = {"model": "tiny", "dataset": "data.jsonl", "output": "out"}
    typed = {**placeholder, **typed_settings(arguments)}
    values = {flag_of(name): str(value) for name, value in typed.items()}
    print(describe(check_values(typed, name=flag_of).decide(), values))
    return 0


def _rules_named(code: str | None) -> Sequence[Rule]:
    """Return the rule of a code, or all of them.

    Raises:
        UsageError: there is none of that code.
    """
    found = [rule for rule in RULES if code in (None, rule.code, rule.name)]
    if not found:
        near = near_names(str(code).upper(), [rule.code for rule in RULES])
        raise UsageError(f"there is no rule {code}{near}", hint="mud-puppy explain --rules")
    return found


def _print_all() -> int:
    """Print method, precision, feature and verdict of every single-feature combination."""
    for decision in every_single_feature():
        feature = decision.features[0] if decision.features else "-"
        print(f"{decision.method:10} {decision.precision:5} {feature:24} {decision.word}")
    print(f"{len(METHODS)} methods, {len(PRECISIONS)} precisions; `--rules` says why")
    return 0


def _is_command(words: list[str]) -> bool:
    """Tell a command from a model: `tiny` is the name of both."""
    return words[0] != "tiny" or len(words) == 1 or words[1] in TINY_ACTIONS


def _run_module(name: str, words: list[str]) -> int:
    """Run a command that lives in a module of its own."""
    command: Any = importlib.import_module(MODULES[name])
    parser = FriendlyParser(
        prog=f"mud-puppy {name}",
        description=command.DESCRIPTION,
        allow_abbrev=False,
        formatter_class=_formatter(),
    )
    command.add_arguments(parser)
    code: int = command.run(parser.parse_args(words))
    return code
