"""mudpuppy-doctor explain, list and schema: what the probes are, without looking at anything."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

from harness.doctor.explain import find_probes
from harness.doctor.visit import choose_probes
from harness.registry import Probe, load_probes, select_probes
from harness.selftest.modes import Mode, load_modes
from mudpuppy.parser import FriendlyParser
from reports.commands.doctor_output import printing
from reports.diagnosis_json import write_schema
from reports.diagnosis_summary import AREAS, area_of
from reports.text import clean

SHOWN_MATCHES = 5
"""Probes that are named for a pasted text."""


@printing()
def run_explain(words: Sequence[str]) -> int:
    """Print the documentation of the probe that is meant, or the few that may be."""
    parser = FriendlyParser(prog="mudpuppy-doctor explain", allow_abbrev=False)
    asked = "a code such as MPD203, the name of a fault, an FM number, or the text of a warning"
    parser.add_argument("words", nargs="+", help=asked)
    text = " ".join(parser.parse_args(words).words).strip()
    if mode := _find_mode(text):
        _print_mode(mode)
        return 0
    first, *others = find_probes(text)
    if not others:
        _print_whole(first)
        return 0
    print(f"'{clean(text)[:100]}' may be about:\n")
    _print_lines((first, *others[: SHOWN_MATCHES - 1]))
    print(f"\nmudpuppy-doctor explain {first.code} says more")
    return 0


def _find_mode(text: str) -> Mode | None:
    return next((mode for mode in load_modes() if mode.number == text.upper()), None)


def _print_mode(mode: Mode) -> None:
    """Print what the catalogue calls a failure mode, and which probes look for it."""
    print(f"{mode.number} {mode.name} ({mode.severity}; shows in: {mode.depth})\n")
    if mode.reason:
        print(f"No checkpoint shows it: {mode.reason}\n")
    probes = select_probes(load_probes(), [mode.number])
    _print_lines(probes)
    if probes:
        print(f"\nmudpuppy-doctor explain {probes[0].code} says more")


def _print_lines(probes: Sequence[Probe]) -> None:
    """Print a line each; on a terminal that is too narrow the caption is cut."""
    width = shutil.get_terminal_size((200, 24)).columns if sys.stdout.isatty() else 200
    for one in probes:
        line = f"  {one.code}  {one.severity:<8}  {one.name:<32} {one.caption}"
        print(line if len(line) <= width else f"{line[: width - 1]}…")


@printing()
def run_list(words: Sequence[str]) -> int:
    """Print every probe, or those that are named, by area."""
    parser = FriendlyParser(prog="mudpuppy-doctor list", allow_abbrev=False)
    parser.add_argument("words", nargs="*", help="codes, beginnings of codes, names or FM numbers")
    asked = [word for part in parser.parse_args(words).words for word in part.split(",") if word]
    chosen = choose_probes(asked, ()) if asked else load_probes()
    for area in dict.fromkeys([*AREAS.values(), "other"]):
        inside = [one for one in chosen if area_of(one.code) == area]
        if inside:
            print(f"{area}")
        _print_lines(inside)
    return 0


@printing()
def run_schema(words: Sequence[str]) -> int:
    """Print the JSON Schema of the JSON report."""
    FriendlyParser(prog="mudpuppy-doctor schema", allow_abbrev=False).parse_args(words)
    print(write_schema(), end="")
    return 0


def _print_whole(one: Probe) -> None:
    modes = f"; {', '.join(one.modes)}" if one.modes else ""
    print(f"{one.code} {one.name} ({one.severity}{modes})\n")
    print(one.documentation)
