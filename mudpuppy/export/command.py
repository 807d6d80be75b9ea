"""The command `mud-puppy export`: write a model for the programs that serve it."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from mudpuppy.base_path import find_folder
from mudpuppy.export.gguf.export import (
    DEFAULT_QUANT,
    ExportReport,
    check_quant,
    export_gguf,
)
from mudpuppy.export.gguf.tensors import QUANTS
from mudpuppy.interruption import describe
from mudpuppy.telling import format_bytes, say

DESCRIPTION = "Write a model for the programs that serve it: one GGUF file, quantised in one pass."
EXAMPLES = """\
examples:
  mud-puppy export gguf ./merged model.gguf
  mud-puppy export gguf ./merged served/ --quant q8_0
  mud-puppy export gguf Qwen/Qwen2.5-0.5B-Instruct qwen.gguf --quant bf16
  mud-puppy export gguf ./merged model.gguf --quant q5_k_m --llama-cpp-path ~/llama.cpp

An adapter is merged first: mud-puppy merge BASE ADAPTER MERGED
f32, f16, bf16 and q8_0 need the gguf package; the others also llama.cpp's own code: xllamacpp or
llama-cpp-python (pip install 'mudpuppy[serve]'), or a checkout that is built.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the subcommand `gguf`."""
    forms = parser.add_subparsers(dest="form", required=True, metavar="gguf")
    gguf = forms.add_parser(
        "gguf",
        help="one GGUF file, for llama.cpp, Ollama, LM Studio and vLLM",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.epilog = EXAMPLES
    gguf.add_argument("model", help="folder of a whole model, hub id, or tiny")
    gguf.add_argument(
        "output", type=Path, help="file that ends in .gguf, or a folder to put it into"
    )
    gguf.add_argument(
        "--quant",
        default=DEFAULT_QUANT,
        metavar="TYPE",
        help=f"{', '.join(QUANTS)}; by default {DEFAULT_QUANT}",
    )
    gguf.add_argument(
        "--llama-cpp-path",
        type=Path,
        metavar="DIR",
        help="checkout or build of llama.cpp that makes the K types; else what is installed",
    )
    gguf.add_argument(
        "--pre-tokenizer",
        metavar="NAME",
        help="llama.cpp's name of the pre-tokenizer; found out by itself where this is left out",
    )
    gguf.add_argument(
        "--system",
        metavar="TEXT",
        help="system prompt of the Ollama Modelfile that is written beside the file",
    )
    gguf.add_argument("--no-notes", action="store_true", help="write nothing beside the file")
    gguf.add_argument("--overwrite", action="store_true", help="replace a GGUF file of that name")


def run(args: argparse.Namespace) -> int:
    """Run the parsed command and return its exit code.

    Raises:
        UsageError: model, file or type cannot be used.
        EngineError: the disk is full, or the quantiser failed.
    """
    check_quant(args.quant)
    model = find_folder(args.model)
    finished: list[ExportReport] = []
    try:
        report = export_gguf(
            model,
            args.output,
            quant=args.quant,
            llama_cpp=args.llama_cpp_path,
            pre_tokenizer=args.pre_tokenizer,
            overwrite=args.overwrite,
            say=say,
        )
        finished.append(report)
        _tell(report)
        if not args.no_notes:
            _write_notes(report.output, model, args.system)
    except KeyboardInterrupt as error:
        if not finished:
            raise
        word, code = describe(error)
        print(f"mud-puppy: {word}; {finished[0].output} is complete", file=sys.stderr)
        return code
    return 0


def _tell(report: ExportReport) -> None:
    counts = ", ".join(f"{count} {kind}" for kind, count in report.types.items())
    say(
        f"wrote {format_bytes(report.bytes)} in {report.seconds:.1f} s: {report.output} "
        f"({counts}; by {report.quantiser})"
    )
    path = shlex.quote(str(report.output))
    say(f"check it: mudpuppy-doctor {path}")
    say(
        f"ask it: mud-puppy serve {path}, and beside it\n"
        "  mudpuppy-doctor --endpoint http://127.0.0.1:1234/v1 --quiz FILE, questions and answers "
        "of yours"
    )


def _write_notes(output: Path, model: Path, system: str | None) -> None:
    """Write how the file is served, and name what was written."""
    from mudpuppy.export.serving_notes import write_notes

    for path in write_notes(output, model, system=system):
        say(f"how to serve it: {path}")
