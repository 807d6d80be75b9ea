"""The command `mud-puppy temporal`: the workflow of seed 003, from records to a judged model."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

DESCRIPTION = (
    "Temporal unlearning: keep what was before a year, refuse what came after; from records to a "
    "served model (docs/temporal.md)."
)
ACTIONS = {
    "data": "mudpuppy.pipelines.temporal.making",
    "finetune": "mudpuppy.pipelines.temporal.finetuning",
    "merge": "mudpuppy.pipelines.temporal.merging",
    "convert": "mudpuppy.pipelines.temporal.converting",
    "evaluate": "mudpuppy.pipelines.temporal.evaluating",
    "compare": "mudpuppy.pipelines.temporal.comparing",
}
"""Subcommands; each module has `HELP`, `EPILOG`, `add_arguments(parser)` and `run(arguments)`."""
EPILOG = """\
example, from start to finish, on the embedded model:
  mud-puppy temporal data --from tiny datasets
  mud-puppy temporal finetune --model_name tiny --learning_rate 3e-3 --epochs 6 --batch_size 16 \\
      --gradient_accumulation_steps 1
  mud-puppy temporal merge --base_model tiny --lora_path output/temporal-tiny-full-*/final \\
      --output_path output/merged --verify
  mud-puppy temporal convert --model_path output/merged --output_path output/merged.gguf
  mud-puppy temporal evaluate --model_path output/merged --test_file datasets/dev/dev_subset.jsonl
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the subcommands."""
    parser.epilog = EPILOG
    actions = parser.add_subparsers(
        dest="action", required=True, metavar="{" + ",".join(ACTIONS) + "}"
    )
    for name, path in ACTIONS.items():
        module: Any = importlib.import_module(path)
        child = actions.add_parser(
            name,
            help=module.HELP,
            description=f"{module.HELP[0].upper()}{module.HELP[1:]}.",
            epilog=module.EPILOG,
            allow_abbrev=False,
            formatter_class=parser.formatter_class,
        )
        module.add_arguments(child)


def run(args: argparse.Namespace) -> int:
    """Run the parsed command and return its exit code.

    Raises:
        MudpuppyError: it cannot be done.
    """
    module: Any = importlib.import_module(ACTIONS[args.action])
    code: int = module.run(args)
    return code
