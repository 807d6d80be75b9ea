"""Judge one cell of the matrix: what came out against what had to, and every probe on the artefact.

Runs in the runner's process, without torch: it reads what the worker left behind.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from harness.cell_folder import LOG_FILE, read_tail
from harness.doctor import Judging, diagnose
from harness.doctor.verdict import judge
from harness.doctor.visit import RUN_PROBES
from harness.evidence.source import CheckpointEvidence
from harness.facts.behaviour import LiveModel
from harness.findings import Diagnosis, Status
from harness.matrix import Cell
from harness.observations import Observations, read_observations
from harness.registry import load_probes, run_probes, select_probes
from harness.required import required_probes
from harness.results import CellResult, Outcome, WorkerExit

CHECKPOINT = "checkpoint"
MEMORY_WORDS = ("OutOfMemoryError", "MemoryError", "Cannot allocate memory")


def judge_cell(cell: Cell, folder: Path, worker_exit: WorkerExit) -> CellResult:
    """Return the result of a cell whose worker has ended."""
    seen = read_observations(folder) if worker_exit.exit_code == 0 else None
    if seen is None:
        outcome, message = _judge_exit(folder, worker_exit)
        return _result(cell, outcome, message)
    if cell.expect.outcome == "rejected":
        return _result(cell, *_judge_rejection(seen, str(cell.expect.code)), seen)
    if seen.ending == "rejected":
        message = f"rejected with {' '.join(seen.codes)} and should have run: {seen.message}"
        return _result(cell, Outcome.WRONG_REJECTION, message, seen)
    if seen.ending == "skipped":
        return _result(cell, Outcome.NOT_RUN, seen.message, seen)
    if seen.ending == "refused":
        return _result(cell, Outcome.FAILED, f"refused: {seen.message}", seen)
    diagnosis = diagnose_cell(cell, folder, seen)
    outcome, message = _judge_artefact(cell, seen, diagnosis)
    return _result(cell, outcome, message, seen, diagnosis)


def diagnose_cell(cell: Cell, folder: Path, seen: Observations) -> Diagnosis:
    """Run every probe on the cell's artefacts, with the worker's observations as more evidence."""
    expectation = {
        **cell.expect.model_dump(mode="json"),
        "max_steps": cell.config.get("max_steps"),
        "config": cell.config,
    }
    given: dict[str, Any] = {"observations": seen, "expectation": expectation}
    if seen.trial.get("live_model"):
        given["live_model"] = TypeAdapter(LiveModel).validate_python(seen.trial["live_model"])
    if (folder / CHECKPOINT).is_dir():
        return diagnose(folder / CHECKPOINT, Judging(run_folder=folder, given=given))
    # Nothing was saved; what was seen while training may still name the cause.
    probes = select_probes(load_probes(), [RUN_PROBES])
    results = run_probes(probes, CheckpointEvidence(folder, given=given))
    verdict, why = judge(results, {".": "there is no checkpoint folder"})
    return Diagnosis(path=str(folder), verdict=verdict, why=why, probes=results)


def _judge_exit(folder: Path, worker_exit: WorkerExit) -> tuple[Outcome, str]:
    """Name the ending of a worker that observed nothing."""
    if worker_exit.timed_out:
        return Outcome.TIMEOUT, worker_exit.words
    tail = read_tail(folder / LOG_FILE)
    last = next((line for line in reversed(tail.splitlines()) if line.strip()), "no output")
    if any(word in tail for word in MEMORY_WORDS):
        return Outcome.OUT_OF_MEMORY, f"{worker_exit.words}: {last}"
    if worker_exit.signal == "SIGKILL":
        return Outcome.CRASHED, "ended by SIGKILL, as the kernel does when memory runs out"
    return Outcome.CRASHED, f"{worker_exit.words} without observations: {last}"


def _judge_rejection(seen: Observations, code: str) -> tuple[Outcome, str]:
    """Compare what came out with a rejection by `code`, before torch, with nothing written."""
    if seen.ending != "rejected":
        what = {"trained": "it trained", "refused": "it was refused without a code"}
        found = what.get(seen.ending, f"it {seen.ending}")
        said = f": {seen.message}" if seen.message else ""
        return Outcome.MISSED_REJECTION, f"should be rejected with {code}, and {found}{said}"
    if code not in seen.codes:
        found = " ".join(seen.codes) or "no code"
        return Outcome.WRONG_REJECTION, f"rejected with {found} instead of {code}"
    if seen.torch_imported:
        return Outcome.FAILED, f"rejected with {code}, but only after torch was imported"
    if seen.files_written:
        return Outcome.FAILED, f"rejected with {code}, but {seen.files_written[0]} was written"
    return Outcome.REJECTED_AS_EXPECTED, f"rejected with {code} before torch, nothing written"


def _judge_artefact(cell: Cell, seen: Observations, diagnosis: Diagnosis) -> tuple[Outcome, str]:
    """Weigh the probes: unexpected findings, silent expected ones, and what was not checked."""
    failed = {r.code: r for r in reversed(diagnosis.probes) if r.is_sick}
    wanted = set(cell.expect.findings)
    surprising = [result for code, result in failed.items() if code not in wanted]
    if surprising:
        first = min(surprising, key=lambda r: r.code)
        more = f" (and {len(surprising) - 1} more)" if len(surprising) > 1 else ""
        return Outcome.FAILED, f"{first.code} {first.name}: {first.message}{more}"
    if seen.ending == "crashed":
        return Outcome.CRASHED, seen.message or "the engine failed"
    silent = sorted(wanted - set(failed))
    if silent:
        return Outcome.FAILED, f"{' '.join(silent)} should have found something and did not"
    crashed = [r for r in diagnosis.probes if r.status is Status.CRASHED]
    if crashed:
        return Outcome.CRASHED, f"{crashed[0].code} {crashed[0].name} crashed: {crashed[0].reason}"
    unchecked = _find_unchecked(cell, diagnosis)
    if unchecked:
        return Outcome.CRASHED, f"could not be checked: {unchecked}"
    return Outcome.PASSED, diagnosis.why


def _find_unchecked(cell: Cell, diagnosis: Diagnosis) -> str:
    """Return the first probe that had to answer and was skipped, with its reason."""
    answered = {r.code for r in diagnosis.probes if r.status in (Status.PASSED, Status.FAILED)}
    reasons = {r.code: r.reason for r in diagnosis.probes if r.status is Status.SKIPPED}
    missing = [code for code in required_probes(cell) if code not in answered]
    return "; ".join(f"{code} ({reasons.get(code, 'not run')})" for code in missing)


def _result(
    cell: Cell,
    outcome: Outcome,
    message: str,
    seen: Observations | None = None,
    diagnosis: Diagnosis | None = None,
) -> CellResult:
    probes = diagnosis.probes if diagnosis else ()
    return CellResult(
        **cell.identity(),
        outcome=outcome,
        status=outcome.status,
        message=message,
        findings=tuple(asdict(result) for result in (diagnosis.findings if diagnosis else ())),
        probes=dict(Counter(str(result.status) for result in probes)),
        metrics=_metrics(seen) if seen else {},
    )


def _metrics(seen: Observations) -> dict[str, float]:
    """Return the numbers of the run that reports show."""
    numbers: dict[str, Any] = {
        name: seen.run.get(name) for name in ("steps", "eval_loss", "train_s", "peak_rss_bytes")
    }
    numbers |= {name: getattr(seen, name) for name in ("loss_before", "loss_after", "loss_noise")}
    numbers["peak_device_bytes"] = seen.run.get("peak_device_bytes") or None  # 0: there is none
    if seen.memory is not None:
        numbers["peak_growth_bytes"] = seen.memory.peak_bytes - seen.memory.before_bytes
    numbers |= {f"{name}_s": value for name, value in seen.seconds.items()}
    for item in seen.comparisons:
        numbers[f"{item.artefact}_logit_error"] = item.relative
    numbers |= {n: v for n, v in seen.trial.items() if isinstance(v, int | float)}
    return {name: float(value) for name, value in numbers.items() if value is not None}
