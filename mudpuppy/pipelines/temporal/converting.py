"""`mud-puppy temporal convert`: `mud-puppy export gguf` with the document's flags."""

from __future__ import annotations

import argparse
from pathlib import Path

from mudpuppy.errors import UsageError
from mudpuppy.pipelines.temporal.words import add_flag, run_command

HELP = "write a merged model as a GGUF file"
EPILOG = """\
example:
  mud-puppy temporal convert --model_path output/merged --output_path output/merged.gguf
"""
QUANT_TYPES = ("f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_k_s", "q3_k_m")
LLAMA_CPP = Path("llama.cpp")
"""Where the document has a checkout; used where it is there, never needed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the flags of seed 003, "Phase 2.4"."""
    text = "folder of the merged model"
    add_flag(parser, "model_path", required=True, type=Path, metavar="DIR", help=text)
    text = "the GGUF file to write"
    add_flag(parser, "output_path", required=True, type=Path, metavar="FILE", help=text)
    text = "quantisation (default: q4_k_m)"
    add_flag(
        parser,
        "quant_type",
        choices=QUANT_TYPES,
        type=str.lower,
        default="q4_k_m",
        metavar="|".join(QUANT_TYPES),
        help=text,
    )
    text = "a llama.cpp checkout; by default ./llama.cpp where one is built, else the wheel's code"
    add_flag(parser, "llama_cpp_path", type=Path, metavar="DIR", help=text)


def run(args: argparse.Namespace) -> int:
    """Convert, and return the exit code.

    Raises:
        UsageError: model, file or quantisation cannot be used.
        EngineError: the file cannot be written, or a value is not finite.
    """
    words = ["gguf", str(args.model_path), str(args.output_path), "--quant", args.quant_type]
    checkout = args.llama_cpp_path or (LLAMA_CPP if _is_built(LLAMA_CPP) else None)
    if checkout is not None:
        words += ["--llama-cpp-path", str(checkout)]
    return run_command("convert", "mudpuppy.export.command", words)


def _is_built(checkout: Path) -> bool:
    """Return whether a checkout holds something that quantises: a mere clone does not."""
    from mudpuppy.export.gguf.libraries import find_candidates

    try:
        return bool(find_candidates(checkout))
    except UsageError:
        return False
