"""A matrix of a hundred thousand cells: the time and memory that it takes to list and select them.

The axes and includes of `scenarios/full.yaml` times 81 seeds. Every figure is of a fresh process
that runs the real command.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from benchmarks.children import ROOT, call
from benchmarks.frame import Figures, Plan, Row, Sides, Subject, Work, at_most, interleave

SEEDS = 81
COMMANDS = {
    "list all": ("list", "{file}"),
    "list, selected by setting and name": (
        *("list", "{file}", "--select", "method=qlora", "--select", "full-*", "--ignore", "seed=9"),
    ),
    "list, selected by feature": ("list", "{file}", "--select", "feature=packing"),
    "run --sample 30 --dry-run": ("run", "{file}", "--sample", "30", "--seed", "1", "--dry-run"),
    "run --shard 2/8 --dry-run": ("run", "{file}", "--shard", "2/8", "--dry-run"),
}


def write_matrix(folder: Path, count: int) -> Path:
    """Write the large matrix beside nothing else; its datasets are not opened."""
    text = (ROOT / "scenarios" / "full.yaml").read_text(encoding="utf-8")
    seeds = ", ".join(str(seed) for seed in range(count))
    text = text.replace("  feature: all\n", f"  feature: all\n  seed: [{seeds}]\n")
    text = text.replace("    seed: 8\n", "")  # the seed is an axis now, and would be matched
    path = folder / "large.yaml"
    path.write_text(text.replace("name: full", "name: large"), encoding="utf-8")
    return path


def import_command() -> None:
    """Import the command line."""
    import reports.commands.pressure  # noqa: F401


def run(*words: str) -> Figures:
    """Run the command line and return how many lines it printed.

    Raises:
        RuntimeError: it failed.
    """
    from reports.commands.pressure import main

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = main(list(words))
    if code != 0:
        raise RuntimeError(f"exit code {code}: {printed.getvalue()[-1000:]}")
    return {"lines": printed.getvalue().count("\n")}


def measure(plan: Plan) -> Sides:
    """Run every command in fresh processes."""
    seeds = plan.pick(full=SEEDS, quick=8)
    file = write_matrix(plan.folder, seeds)
    plan.facts["seeds"] = seeds
    plan.rounds = min(plan.rounds, 2)

    def child(words: tuple[str, ...]) -> Work:
        typed = [word.format(file=file) for word in words]
        return lambda: call("benchmarks.rows.matrix:run", *typed, is_whole=True)

    sides = interleave(plan, {title: child(words) for title, words in COMMANDS.items()})
    listed = sides["list all"]
    assert isinstance(listed, list)
    plan.facts["lines of the list"] = int(listed[0]["lines"])
    return sides


SUBJECT = Subject(
    name="matrix",
    title="Pressure matrix: listing and selecting a hundred thousand cells",
    measure=measure,
    in_quick=False,
    rows=tuple(
        Row(
            name=f"{title.replace(',', '').replace(' ', '-')}-{figure.partition('_')[0]}",
            what=f"{title}, whole process, {words}",
            ours=title,
            against=None,
            figure=figure,
            goal=at_most(bound),
            margin=2.0,
        )
        for title in COMMANDS
        for figure, bound, words in (
            ("cpu_s", 5.0, "processor seconds"),
            ("peak_mb", 500.0, "MB over imports"),
        )
    ),
)
