"""`mud-puppy temporal merge`: `mud-puppy merge` by the document's flags, and one question."""

from __future__ import annotations

import argparse
from pathlib import Path

from mudpuppy.asking import open_local
from mudpuppy.checkpoints import list_checkpoints
from mudpuppy.errors import EngineError, ModelError
from mudpuppy.pipelines.temporal import runs
from mudpuppy.pipelines.temporal.words import add_flag, run_command
from mudpuppy.telling import say

HELP = "fold the adapter of a run into its base"
EPILOG = """\
example:
  mud-puppy temporal merge --base_model Qwen/Qwen2.5-1.5B-Instruct \\
      --lora_path output/temporal-qwen2.5-1.5b-instruct-full-20251226_143022/final \\
      --output_path output/merged --verify
"""
PRECISIONS = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
QUESTION = "What is 2+2?"
"""What a merged model is asked (seed 003, "Verification")."""
NUM_TOKENS = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the flags of seed 003, "Phase 2.3"."""
    text = "the model that was trained on: folder, hub id, or `tiny`"
    add_flag(parser, "base_model", required=True, metavar="MODEL", help=text)
    text = "the adapter: the folder final/ of a run"
    add_flag(parser, "lora_path", required=True, type=Path, metavar="DIR", help=text)
    text = "folder for the merged model; must be new or empty"
    add_flag(parser, "output_path", required=True, type=Path, metavar="DIR", help=text)
    text = "type of the merged weights (default: bfloat16)"
    add_flag(parser, "dtype", choices=tuple(PRECISIONS), default="bfloat16", help=text)
    text = "compare logits and answers with base and adapter, and ask the result a question"
    add_flag(parser, "verify", action="store_true", help=text)


def run(args: argparse.Namespace) -> int:
    """Merge, verify where that is asked, and return the exit code.

    Raises:
        UsageError: base, adapter or folder cannot be used.
        EngineError: the merged model differs from base and adapter, or says nothing.
    """
    adapter = find_adapter(args.lora_path)
    words = [args.base_model, str(adapter), str(args.output_path)]
    words += ["--precision", PRECISIONS[args.dtype], *(["--verify"] if args.verify else [])]
    code = run_command("merge", "mudpuppy.adapters.command", words)
    if args.verify and not code:
        _ask(args.output_path)
    return code


def find_adapter(path: Path) -> Path:
    """Return the adapter's folder; of a run's own folder the one below it.

    Raises:
        ModelError: the run has not ended.
    """
    below = path / runs.FINAL
    if (path / "adapter_config.json").is_file() or not path.is_dir():
        return path
    if (below / "adapter_config.json").is_file():
        return below
    if list_checkpoints(path):
        raise ModelError(
            f"the run in {path} has not ended: there is no {runs.FINAL}/",
            hint=f"mud-puppy temporal finetune --output_dir {path} --resume_latest",
        )
    return path


def _ask(folder: Path) -> None:
    """Ask the merged model a question and print what it says.

    Raises:
        EngineError: it says nothing.
    """
    say("Verifying merged model...")
    (answer,) = open_local(folder).answer([QUESTION], max_tokens=NUM_TOKENS)
    if not answer.text.strip():
        raise EngineError(
            f"the merged model in {folder} answers {QUESTION!r} with nothing",
            hint=f"mudpuppy-doctor {folder} --generate says what is wrong with it",
        )
    say("Test generation successful!")
    say(f"  Prompt: {QUESTION}")
    say(f"  Response: {' '.join(answer.text.split())}")
