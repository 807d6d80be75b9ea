"""The "Quick Start Workflow" of seed 003, top to bottom, on the embedded model.

    python -m mudpuppy.pipelines.temporal.demo [FOLDER]

Records, dev run, full run, kill and resume, merge, two GGUF files, each served and evaluated over
HTTP, and a table of all of them beside transformers' own answers.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from mudpuppy.checkpoints import find_fault, list_checkpoints
from mudpuppy.errors import EngineError, MudpuppyError, UsageError
from mudpuppy.telling import say

MODEL = "tiny"
TRAINING = (
    *("--learning_rate", "3e-3", "--epochs", "6", "--batch_size", "16"),
    *("--gradient_accumulation_steps", "1", "--precision", "fp32", "--max_seq_length", "96"),
)
"""What the embedded model needs: it has 0.6 million weights, and not 1.5 billion."""
TEST_FILE = "datasets/dev/dev_subset.jsonl"
QUANTS = ("q8_0", "q4_k_m")
MIN_SAME = 0.95
"""Share of the served Q8_0 answers that must be transformers' own, letter for letter."""
PATIENCE_S = 300.0
"""Time within which a run must have written its first checkpoint."""

Runner = Callable[[Sequence[str], Mapping[str, str]], int]
"""Runs a `mud-puppy` command with further environment variables and returns its exit code."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One evaluation of the walk."""

    name: str
    results: dict[str, Any]
    """The results file."""

    @property
    def answers(self) -> list[str]:
        """What was answered, in the order of the questions."""
        return [one["answer"] for one in self.results["answers"]]

    def share(self, group: str, name: str) -> float:
        """Return a share of the results, 0 to 1."""
        return float(self.results["metrics"][group][name]["share"])


def same_answers(one: Stage, other: Stage) -> float:
    """Return the share of answers that are equal, letter for letter."""
    pairs = list(zip(one.answers, other.answers, strict=True))
    return sum(mine == theirs for mine, theirs in pairs) / len(pairs)


class Walk:
    """The workflow in one folder, which is the working directory of every command."""

    def __init__(self, folder: Path, run: Runner, *, training: Sequence[str] = TRAINING) -> None:
        self._folder = folder
        self._run = run
        self._training = tuple(training)
        self.seconds: dict[str, float] = {}

    def command(self, title: str, words: Sequence[str], *, may_find: bool = False) -> None:
        """Run one command and note its time.

        Raises:
            EngineError: it ended otherwise than it should.
        """
        say(f"\n$ mud-puppy {shlex.join(words)}")
        started = time.monotonic()
        code = self._run(words, {"WIKI_DATA": str(self._folder)})
        self.seconds[title] = time.monotonic() - started
        if code not in ((0, 1) if may_find else (0,)):
            raise EngineError(f"`mud-puppy {shlex.join(words)}` ended with exit code {code}")

    def prepare(self) -> None:
        """Write the records and look at them again."""
        self.command("data", ["temporal", "data", "--from", "tiny", "datasets"])

    def develop(self) -> None:
        """Train on the dev subset for one epoch."""
        words = ["temporal", "finetune", "--dev", "--model_name", MODEL, *self._training]
        # the last of two values counts
        self.command("dev run", [*words, "--epochs", "1", "--batch_size", "2"])

    def train(self, output: str, *more: str) -> None:
        """Train on everything, or go on."""
        title = "resumed run" if "--resume_latest" in more else "full run"
        self.command(title, self.training_words(output, *more))

    def training_words(self, output: str, *more: str) -> list[str]:
        """Return the command of the full run."""
        words = ["temporal", "finetune", "--model_name", MODEL, "--output_dir", output]
        return [*words, *self._training, "--save_steps", "20", "--eval_steps", "40", *more]

    def merge(self, output: str) -> None:
        """Merge the adapter, and verify it."""
        words = ["temporal", "merge", "--base_model", MODEL, "--lora_path", f"{output}/final"]
        words += ["--output_path", "output/merged", "--dtype", "float32", "--verify"]
        self.command("merge", words)

    def convert(self, quant: str) -> str:
        """Write a GGUF file and return its path."""
        path = f"output/merged-{quant}.gguf"
        words = ["temporal", "convert", "--model_path", "output/merged", "--output_path", path]
        self.command(f"convert {quant}", [*words, "--quant_type", quant])
        return path

    def evaluate(self, name: str, *who: str) -> Stage:
        """Evaluate a model; that it misses thresholds is for the reader to judge."""
        output = f"results-{name}.json"
        words = ["temporal", "evaluate", *who, "--test_file", TEST_FILE, "--max_tokens", "48"]
        self.command(f"evaluate {name}", [*words, "--output", output], may_find=True)
        results = json.loads((self._folder / output).read_text(encoding="utf-8"))
        return Stage(name=name, results=results)

    def evaluate_served(self, quant: str, path: str) -> Stage:
        """Serve a GGUF file on this machine and evaluate it over HTTP."""
        from mudpuppy.serving import serving

        with serving(self._folder / path) as url:
            return self.evaluate(quant, "--endpoint", url)


def table(stages: Sequence[Stage]) -> str:
    """Return what every stage answered, as a table; the first one is what the others should say."""
    rows = [
        [
            stage.name,
            f"{stage.share('retain', 'right'):.1%}",
            f"{stage.share('retain', 'false_refusals'):.1%}",
            f"{stage.share('unlearn', 'refused'):.1%}",
            f"{stage.share('unlearn', 'leaked'):.1%}",
            f"{same_answers(stages[0], stage):.1%}",
            stage.results["grade"],
        ]
        for stage in stages
    ]
    head = ["model", "retain right", "false refusals", "unlearn refused", "leaked", "same", "grade"]
    return tabulate(rows, headers=head, disable_numparse=True)


def run_command(folder: Path) -> Runner:
    """Return a runner that starts a process for every command, as a shell does."""

    def run(words: Sequence[str], variables: Mapping[str, str]) -> int:
        command = [sys.executable, "-m", "mudpuppy", *words]
        return subprocess.run(
            command, cwd=folder, env={**os.environ, **variables}, check=False
        ).returncode

    return run


def kill_after_checkpoint(folder: Path, words: Sequence[str], output: str) -> int:
    """Start a run and kill it (SIGKILL) once its first checkpoint is complete; return its step.

    Raises:
        EngineError: the run ended before, or wrote none in time.
    """
    command = [sys.executable, "-m", "mudpuppy", *words]
    say(f"\n$ mud-puppy {shlex.join(words)}   # killed after its first checkpoint")
    log = folder / "killed.log"
    variables = {**os.environ, "WIKI_DATA": str(folder)}
    with log.open("w", encoding="utf-8") as handle:
        process = subprocess.Popen(
            command, cwd=folder, env=variables, stdout=handle, stderr=subprocess.STDOUT
        )
        try:
            deadline = time.monotonic() + PATIENCE_S
            while time.monotonic() < deadline and process.poll() is None:
                complete = [
                    step
                    for step, path in list_checkpoints(folder / output)
                    if not find_fault(path, deep=False)
                ]
                if complete:
                    process.send_signal(signal.SIGKILL)
                    say(f"killed at a step after {complete[0]}")
                    return complete[0]
                time.sleep(0.05)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
    tail = log.read_text(encoding="utf-8")[-2000:]
    raise EngineError(f"the run that was to be killed ended with {process.returncode}\n{tail}")


def main(argv: Sequence[str] | None = None) -> int:
    """Walk through the workflow; return 0 where every target is met and the answers agree."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with tempfile.TemporaryDirectory(prefix="mudpuppy-temporal-") as temporary:
            folder = Path(words[0]) if words else Path(temporary)
            if folder.is_dir() and any(folder.iterdir()):
                raise UsageError(f"{folder} is not empty", hint="name another folder")
            folder.mkdir(parents=True, exist_ok=True)
            return _walk(folder.resolve())
    except MudpuppyError as error:
        print(f"temporal demo: error: {error}", file=sys.stderr)
        return error.exit_code


def _walk(folder: Path) -> int:
    started = time.monotonic()
    walk, output = Walk(folder, run_command(folder)), "output/temporal-tiny-full"
    walk.prepare()
    before = walk.evaluate("base", "--model_path", MODEL)
    walk.develop()
    kill_after_checkpoint(folder, walk.training_words(output), output)
    walk.train(output, "--resume_latest")
    walk.merge(output)
    stages = [walk.evaluate("transformers", "--model_path", "output/merged")]
    stages += [walk.evaluate_served(quant, walk.convert(quant)) for quant in QUANTS]
    same = same_answers(stages[0], stages[1])
    say("\n" + table([*stages, before]))
    took = ", ".join(f"{title} {seconds:.0f} s" for title, seconds in walk.seconds.items())
    say(f"\n{took}; in all {time.monotonic() - started:.0f} s")
    missed = [stage.name for stage in stages[:2] if stage.results["grade"] != "excellent"]
    if missed:
        say(f"TARGETS MISSED: {', '.join(missed)}")
    if same < MIN_SAME:
        say(f"SERVED ANSWERS DIFFER: {same:.1%} of Q8_0's are transformers', wanted {MIN_SAME:.0%}")
    return 1 if missed or same < MIN_SAME else 0


if __name__ == "__main__":
    sys.exit(main())
