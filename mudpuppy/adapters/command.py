"""The command `mud-puppy merge`: fold an adapter into its base on disk, block by block."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mudpuppy.adapters.merge_plan import Packing
from mudpuppy.base_path import find_folder
from mudpuppy.errors import UsageError
from mudpuppy.features import MOST_QUANT_SEARCH, QUANT_BLOCK_SIZES
from mudpuppy.interruption import describe
from mudpuppy.provenance import PROVENANCE_FILE, read_provenance
from mudpuppy.quant.declared import MOST_BLOCK, find_declared, read_settings
from mudpuppy.telling import format_bytes, how_to_check, say

if TYPE_CHECKING:
    from mudpuppy.adapters.merge_inputs import Inputs

DESCRIPTION = "Fold a LoRA adapter into its base on disk; the model is never held in memory."
MERGE_HINT = "end what else uses memory; the merge itself needs a few hundred megabytes"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB)", re.IGNORECASE)
SEARCHED = ("nf4", "int4")
"""Formats whose scales can be searched."""
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the arguments of the command."""
    parser.add_argument("base", help="the model the adapter was trained on: a folder or a hub id")
    parser.add_argument("adapter", type=Path, help="folder with adapter_config.json")
    parser.add_argument("output", type=Path, help="folder that is empty or does not exist")
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        help="type of the weights; by default the base's own",
    )
    parser.add_argument(
        "--quant",
        choices=tuple(QUANT_BLOCK_SIZES),
        help="write the layers in few bits that the adapter saw so, or every linear layer of the "
        "decoder; by default the result is in 16 bits, also where the base is not",
    )
    parser.add_argument(
        "--quant-block-size",
        type=int,
        metavar="N",
        help="with --quant: columns that share a scale; by default as in training",
    )
    parser.add_argument(
        "--quant-search",
        type=int,
        default=0,
        metavar="N",
        help="with --quant nf4 or int4: try N further scales for every block, for a smaller error",
    )
    parser.add_argument(
        "--max-shard-size",
        metavar="SIZE",
        help="longest weights file, such as 2GB; by default as the base is divided",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="load both, compare logits and answers, and keep the result only if they agree",
    )
    parser.add_argument(
        "--notes",
        action="store_true",
        help="write into the folder how it is served: an Ollama Modelfile, and SERVING.md",
    )
    parser.add_argument(
        "--system",
        metavar="TEXT",
        help="system prompt of that Modelfile; by default the one that was trained with",
    )
    parser.add_argument(
        "--other-base",
        action="store_true",
        help="merge although the base is not the one that the adapter was trained on",
    )


def run(args: argparse.Namespace) -> int:
    """Run the parsed command and return its exit code.

    Raises:
        UsageError: base, adapter or output cannot be used.
        EngineError: a merged value is not finite, or `--verify` found a difference.
    """
    started = time.monotonic()
    max_bytes = None if args.max_shard_size is None else parse_size(args.max_shard_size)
    packing = choose_packing(args.quant, args.quant_block_size, args.quant_search)
    base = find_folder(args.base)

    # after the arguments are known to be good: torch takes a second to import
    from mudpuppy.adapters.shard_merge import merge_shards
    from mudpuppy.refusals import telling_of_memory

    def verify(folder: Path, inputs: Inputs) -> None:
        from transformers.utils.logging import disable_progress_bar

        from mudpuppy.adapters.merge_verify import verify_merge

        disable_progress_bar()

        for line in verify_merge(folder, inputs):
            say(line)

    manifest = args.output / PROVENANCE_FILE
    was_there = manifest.is_file()
    try:
        with telling_of_memory("the merge", MERGE_HINT):
            report = merge_shards(
                base,
                args.adapter,
                args.output,
                precision=args.precision,
                packing=packing,
                max_shard_bytes=max_bytes,
                other_base=args.other_base,
                inspect=verify if args.verify else None,
                say=say,
            )
    except KeyboardInterrupt as error:
        if was_there or not manifest.is_file():
            raise
        word, code = describe(error)
        print(f"mud-puppy: {word}; {args.output} is complete", file=sys.stderr)
        return code
    seconds = time.monotonic() - started
    say(
        f"merged {report.changed} of {report.tensors} tensors in {seconds:.1f} s: {report.output} "
        f"({format_bytes(report.bytes)} {report.precision}, "
        f"{report.shards} weights file{'s' * (report.shards != 1)})"
    )
    if args.notes or args.system is not None:
        from mudpuppy.export.serving_notes import write_notes

        system = trained_system(args.adapter) if args.system is None else args.system
        for path in write_notes(Path(report.output), Path(report.output), system=system):
            say(f"how to serve it: {path}")
    say(how_to_check(report.output))
    if not find_declared(args.output, read_settings(args.output)):
        folder = shlex.quote(str(report.output))
        say(f"one file of it, to serve: mud-puppy export gguf {folder} model.gguf")
    return 0


def choose_packing(quant: str | None, block_size: int | None, search: int) -> Packing | None:
    """Return the few bits that the flags ask for; None where they ask for none.

    Raises:
        UsageError: they contradict each other or the format.
    """
    if quant is None:
        if block_size is not None or search:
            raise UsageError(
                "--quant-block-size and --quant-search say how --quant writes, and it is not there",
                hint="add --quant nf4, or leave them out",
            )
        return None
    size = QUANT_BLOCK_SIZES[quant] if block_size is None else block_size
    if not 1 <= size <= MOST_BLOCK or (quant == "mxfp4" and size != QUANT_BLOCK_SIZES[quant]):
        raise UsageError(
            f"--quant-block-size {size} is none that {quant} has",
            hint="mxfp4 has blocks of 32 by definition; the others are best with 64 or less",
        )
    if not 0 <= search <= MOST_QUANT_SEARCH or (search and quant not in SEARCHED):
        raise UsageError(
            f"--quant-search {search} is nothing that {quant} can do",
            hint=f"0 to {MOST_QUANT_SEARCH}, for {' and '.join(SEARCHED)}",
        )
    return Packing(format=quant, block_size=size, search=search)


def trained_system(adapter: Path) -> str | None:
    """Return the system prompt that an adapter was trained with, where its manifest says one."""
    try:
        held = read_provenance(adapter) or {}
    except (OSError, ValueError):
        return None  # a damaged manifest says nothing; the doctor says so
    settings = held.get("config")
    found = settings.get("system_prompt") if isinstance(settings, dict) else None
    return found if isinstance(found, str) else None


def parse_size(text: str) -> int:
    """Return a size such as 2GB in bytes.

    Raises:
        UsageError: it is none, or nothing would fit.
    """
    match = _SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if size < 1:
        raise UsageError(
            f"--max-shard-size {text} is no size", hint="write it as 500MB or 2GB, for example"
        )
    return size
