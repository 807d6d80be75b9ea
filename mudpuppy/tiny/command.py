"""The command `mud-puppy tiny`: build the embedded models, and show where they are."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from mudpuppy.errors import OutputError
from mudpuppy.files import atomic_folder
from mudpuppy.tiny.build import MANIFEST, build_tiny
from mudpuppy.tiny.cache import (
    cache_folder,
    family_path,
    is_complete,
    tiny_path,
)
from mudpuppy.tiny.names import FAMILIES, check_family

DESCRIPTION = "The embedded model: small, trained here, with behaviour that can be lost."
PROGRESS_EVERY = 50
"""Steps between two progress lines."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the subcommands `build` and `show`."""
    actions = parser.add_subparsers(dest="tiny_action", required=True, metavar="{build,show}")
    build = actions.add_parser("build", help="train the tiny model, or make one of another family")
    build.add_argument("--output", type=Path, metavar="DIR", help="write here, not into the cache")
    which = build.add_mutually_exclusive_group()
    which.add_argument("--family", metavar="NAME", help=f"a random model: {', '.join(FAMILIES)}")
    which.add_argument("--all", action="store_true", help="the trained model and every family")
    build.add_argument("--force", action="store_true", help="build again what is there already")
    build.add_argument("--seed", type=int, default=0, help="of the weights and the sample order")
    actions.add_parser("show", help="print where the models are cached, their hash and scores")


def run(args: argparse.Namespace) -> int:
    """Run the parsed command and return its exit code.

    Raises:
        UsageError: an unknown family, or a folder that may not be written.
        EngineError: the trained model is not fit for use.
    """
    if args.tiny_action == "show":
        return _show()
    if args.family is not None:
        check_family(args.family)
    chosen: list[str | None] = [None, *FAMILIES] if args.all else [args.family]
    for family in chosen:
        output = args.output
        if output is not None and args.all:
            output = output / (family or "tiny")
        folder = _build(family, output, seed=args.seed, force=args.force)
        print("\n".join(describe(folder)))
    return 0


def describe(folder: Path) -> list[str]:
    """Return what the manifest of a built model says, as lines to print."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    name = f"tiny:{manifest['family']}" if "family" in manifest else "tiny"
    lines = [
        f"{name}: {folder}",
        f"  content hash  {manifest['content_hash']}",
        f"  weights       {manifest['parameters']:,} parameters, "
        f"sha256 {manifest['weights_sha256'][:16]}",
    ]
    both = [who for who in ("trained", "control") if who in manifest]
    lines += [f"  {who:<13} {_scores(manifest[who])}" for who in both]
    if "wall_s" in manifest:
        lines.append(
            f"  built in      {manifest['wall_s']:.0f} s ({manifest['cpu_s']:.0f} s of processor)"
        )
    return lines


def _scores(scores: dict[str, float]) -> str:
    return (
        f"{scores['exact']}/{scores['facts']} facts, "
        f"{scores['refused']}/{scores['later']} later questions refused, "
        f"voice {scores['voice']:.2f}, {scores['ended']}/{scores['answers']} answers end"
    )


def _show() -> int:
    for family in (None, *FAMILIES):
        folder = cache_folder(family)
        if is_complete(folder):
            print("\n".join(describe(folder)))
        else:
            state = "damaged, is built again when used" if folder.exists() else "not built yet"
            print(f"tiny{f':{family}' if family else ''}: {folder} ({state})")
    return 0


def _build(family: str | None, output: Path | None, *, seed: int, force: bool) -> Path:
    if output is not None:
        return _build_outside(family, output, seed=seed, force=force)
    if family is not None:
        return family_path(family, seed=seed, force=force)
    return tiny_path(seed=seed, force=force, progress=print_progress)


def _build_outside(family: str | None, output: Path, *, seed: int, force: bool) -> Path:
    _check_output(output, force=force)

    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(output, replace=True) as folder:
        if family is None:
            build_tiny(folder, seed=seed, progress=print_progress)
        else:
            from mudpuppy.tiny.families import build_family

            build_family(family, folder, seed=seed)
    return output


def _check_output(output: Path, *, force: bool) -> None:
    if not output.exists():
        return
    if not output.is_dir():
        raise OutputError(f"{output} is a file, not a folder", hint="name another folder")
    # --force replaces what this command made, and nothing else
    if any(output.iterdir()) and not (force and (output / MANIFEST).is_file()):
        hint = "name another folder; --force replaces an earlier tiny model only"
        raise OutputError(f"{output} is not empty", hint=hint)


def print_progress(step: int, steps: int, loss: float) -> None:
    """Print a line to stderr every `PROGRESS_EVERY` steps and at the end."""
    if step % PROGRESS_EVERY == 0 or step == steps:
        print(f"tiny model: step {step} of {steps}, loss {loss:.3f}", file=sys.stderr, flush=True)
