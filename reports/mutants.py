"""What became of the planted bugs: as a table, as Markdown and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from tabulate import tabulate

from harness.mutant_results import Catch, MutantResult
from reports.text import clean, code_markdown, escape_markdown

MUTANTS_SCHEMA_VERSION = 1
"""Version of what `write_json` returns."""
_WORDS = {
    "caught": "caught",
    "caught-otherwise": "CAUGHT BY OTHERS",
    "survived": "SURVIVED",
    "not-checked": "NOT CHECKED",
}


def summarise(results: Sequence[MutantResult], seconds: float) -> str:
    """Return the verdict in a line."""
    counts = Counter(one.ending for one in results)
    caught = counts["caught"]
    words = [f"{caught} of {len(results)} planted bugs were caught by a probe meant for them"]
    words += [f"{n} by others only" for n in [counts["caught-otherwise"]] if n]
    words += [f"{n} survived" for n in [counts["survived"]] if n]
    words += [f"{n} could not be checked" for n in [counts["not-checked"]] if n]
    cells = sum(len(one.catches) for one in results)
    return f"{', '.join(words)}; {cells} planted cells in {seconds:.0f} s"


def write_table(results: Sequence[MutantResult]) -> str:
    """Return a table for the console, a line for each mutant, and what is wrong below it."""
    rows = [
        (clean(one.name), one.area, _WORDS[one.ending], clean(_who(one)), " ".join(one.caught_by))
        for one in results
    ]
    headers = ("planted bug", "area", "ending", "caught by", "meant")
    lines = [tabulate(rows, headers, tablefmt="simple", disable_numparse=True), ""]
    for one in results:
        if one.ending != "caught":
            lines += [f"{one.name}: {clean(one.what)}"]
            lines += [f"  {clean(_tell(catch))}" for catch in one.catches]
    return "\n".join(lines)


def write_list(mutants: Sequence[tuple[str, str, str, str]]) -> str:
    """Return the catalogue: name, area, cells and description of each."""
    headers = ("planted bug", "area", "cells", "what it breaks")
    shown = [(*row[:3], row[3][:70]) for row in mutants]
    return tabulate(shown, headers, tablefmt="simple", disable_numparse=True)


def write_markdown(results: Sequence[MutantResult], seconds: float) -> str:
    """Return the same as a Markdown page."""
    lines = ["# Planted bugs", "", escape_markdown(summarise(results, seconds)) + ".", ""]
    lines += ["| planted bug | ending | caught by | what it breaks |", "| --- | --- | --- | --- |"]
    lines += [
        f"| `{code_markdown(one.name)}` | {_WORDS[one.ending]} | {escape_markdown(_who(one))} | "
        f"{escape_markdown(one.what)} |"
        for one in results
    ]
    return "\n".join(lines) + "\n"


def write_json(results: Sequence[MutantResult], seconds: float) -> str:
    """Return everything for machines."""
    value = {
        "schema_version": MUTANTS_SCHEMA_VERSION,
        "seconds": round(seconds, 1),
        "counts": dict(Counter(one.ending for one in results)),
        "mutants": [asdict(one) for one in results],
    }
    return json.dumps(value, indent=1) + "\n"


def _who(result: MutantResult) -> str:
    """Return which cell and probe caught it."""
    return "; ".join(
        f"{catch.cell} ({' '.join(catch.codes) or catch.outcome})" for catch in result.catches
    )


def _tell(catch: Catch) -> str:
    """Return what a cell said, and first of all what it said without the bug."""
    if catch.control_message:
        return f"{catch.cell}: without the bug it is {catch.control}: {catch.control_message}"
    return f"{catch.cell}: {catch.outcome} {' '.join(catch.codes)} {catch.message}"
