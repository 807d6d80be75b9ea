"""mud-puppy: train (default), explain, and the commands that live beside what they are about.

mud-puppy MODEL DATASET --method lora --output OUT
mud-puppy explain --method lora --stream
mud-puppy tiny build
"""

from __future__ import annotations

import errno
import importlib
import sys
import traceback
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from mudpuppy.errors import MudpuppyError, UsageError, near_names
from mudpuppy.interruption import describe as describe_end
from mudpuppy.interruption import raising_when_terminated
from mudpuppy.parser import FriendlyParser, wide_help
from mudpuppy.telling import mute, print_error
from mudpuppy.tiny.names import is_tiny_name

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
        print_error(error)
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
        from mudpuppy.explain_command import run as explain

        return explain
    if words and words[0] in MODULES and _is_command(words):
        name = words.pop(0)
        return lambda rest: _run_module(name, rest)
    if words[:1] == ["train"]:
        words.pop(0)
    elif words and not is_tiny_name(words[0]):
        near = near_names(words[0], COMMANDS)
        if near and not Path(words[0]).exists():
            raise UsageError(f"there is no command '{words[0]}'{near}", hint="mud-puppy --help")
    from mudpuppy.train_command import run as train

    return train


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
        formatter_class=wide_help,
    )
    command.add_arguments(parser)
    code: int = command.run(parser.parse_args(words))
    return code
