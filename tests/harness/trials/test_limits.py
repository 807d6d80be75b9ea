"""The limits trial: memory that runs out is an answer, any other error is none."""

from __future__ import annotations

import mmap
import os
import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.evidence.source import CheckpointEvidence
from harness.facts.trials import Attempt, Limits
from harness.findings import Status
from harness.observations import Observations
from harness.registry import load_probes, run_probe
from harness.trials import limits as trial
from harness.trials.limits import is_memory_error, last_that, perform, write_rows
from harness.trials.order import Order
from mudpuppy.errors import EngineError
from mudpuppy.loading import load_tokenizer
from mudpuppy.tiny import resolve_model

MIB = 1 << 20
ESTIMATE, MONOTONE = (
    next(p for p in load_probes() if p.code == code) for code in ("MPD742", "MPD743")
)
FITTING = Limits(
    quantity="batch_size",
    memory_bytes=64 * MIB,
    largest=100,
    smallest_refused=110,
    predicted=120,
    ceiling=4096,
    factor=2.0,
    monotone=True,
    max_probes=20,
    attempts=(Attempt(value=100, fits=True, how="fits"), Attempt(value=110, fits=False, how="no")),
)


def judge(probe: Any, limits: Limits):
    seen = Observations(ending="measured", trial=asdict(limits))
    return run_probe(probe, CheckpointEvidence(Path(), given={"observations": seen}))


@pytest.mark.parametrize(
    ("largest", "predicted", "status"),
    [
        (100, 120, Status.PASSED),
        (100, 199, Status.PASSED),
        (100, 201, Status.FAILED),
        (201, 100, Status.FAILED),
        (0, 5, Status.FAILED),
        (5, 0, Status.FAILED),
        (4096, 4096, Status.SKIPPED),
        (4096, 1500, Status.FAILED),
    ],
)
def test_found_and_promised_may_differ_by_the_factor(largest, predicted, status):
    found = judge(ESTIMATE, replace(FITTING, largest=largest, predicted=predicted))

    assert status is found.status


def test_a_search_that_contradicts_itself_is_a_finding():
    fickle = (*FITTING.attempts, Attempt(value=120, fits=True, how="fits"))

    assert Status.PASSED is judge(MONOTONE, FITTING).status
    assert (
        Status.FAILED is judge(MONOTONE, replace(FITTING, attempts=fickle, monotone=False)).status
    )
    assert Status.FAILED is judge(MONOTONE, replace(FITTING, max_probes=1)).status


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("HIP out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("std::bad_alloc"), True),
        (ValueError("wrong shape"), False),
    ],
)
def test_running_out_of_memory_is_told_from_other_errors(error, is_memory):
    wrapped = EngineError("training failed")
    wrapped.__cause__ = error

    assert is_memory is is_memory_error(error) is is_memory_error(wrapped)


def test_the_last_that_holds_is_found():
    assert [0, 1, 7, 9] == [last_that(lambda v, n=n: v <= n, 9) for n in (0, 1, 7, 30)]


def test_rows_are_as_long_as_they_may_be_and_no_longer(tmp_path: Path):
    write_rows(tmp_path / "r", {"model": "tiny:llama", "max_length": 40, "batch_size": 3})
    lines = (tmp_path / "r").read_text().splitlines()
    tokenizer = load_tokenizer(resolve_model("tiny:llama"))

    assert 6 == len(lines)
    assert 38 <= len(tokenizer(lines[0][10:-2])["input_ids"]) <= 39  # and the end


def order_of(folder: Path, train: Any, **options: Any) -> Order:
    return Order(
        folder=folder,
        config={
            "model": "tiny:llama",
            "dataset": "rows.jsonl",
            "method": "lora",
            "max_length": 16,
            "device": "cpu",
        },
        options={"quantity": "batch_size", "memory": 64 * MIB, "ceiling": 512} | options,
        expect={},
        train=train,
        import_engine=lambda: None,
    )


def train_by_size(config: Any, **others: Any) -> None:
    """Stand in for the engine: take a mebibyte for each sample."""
    del others
    config.output.mkdir()
    # Mapped anew: what a long-lived process has freed would be given out again below any limit.
    try:
        held = mmap.mmap(-1, config.batch_size * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as refusal:
        raise MemoryError from refusal
    for place in range(0, len(held), mmap.PAGESIZE):
        held[place] = 1


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch):
    def predict(order: Order, options: Any) -> None:
        (order.folder / "predicted.json").write_text(
            f'{{"memory": {options.memory}, "predicted": 60}}'
        )

    monkeypatch.setattr(trial, "_predict", predict)


@pytest.mark.usefixtures("predicted")
def test_the_largest_that_fits_is_what_the_memory_holds(tmp_path: Path):
    seen = perform(order_of(tmp_path, train_by_size, start=16))

    assert 52 <= seen.trial["largest"] <= 64
    assert 64 <= seen.trial["smallest_refused"] <= 72
    assert {"fits", "out of memory"} == {one["how"] for one in seen.trial["attempts"]}
    assert seen.trial["monotone"]
    found = run_probe(ESTIMATE, CheckpointEvidence(tmp_path, given={"observations": seen}))
    assert Status.PASSED is found.status


@pytest.mark.usefixtures("predicted")
def test_a_run_that_is_killed_does_not_fit_and_its_signal_is_told(tmp_path: Path):
    def train(config: Any, **others: Any) -> None:
        train_by_size(config, **others)
        if config.batch_size > 20:
            os.kill(os.getpid(), signal.SIGKILL)

    seen = perform(order_of(tmp_path, train, start=16))

    assert 18 <= seen.trial["largest"] <= 20
    assert "ended by SIGKILL" in {one["how"] for one in seen.trial["attempts"]}


@pytest.mark.usefixtures("predicted")
def test_any_other_error_is_no_answer(tmp_path: Path):
    def train(config: Any, **others: Any) -> None:
        train_by_size(config, **others)
        if config.batch_size > 1:
            raise ValueError("wrong shape")

    with pytest.raises(EngineError, match="not for memory: ValueError\\('wrong shape'\\)"):
        perform(order_of(tmp_path, train, start=16))


def test_the_estimate_is_asked_for_the_largest_that_fits(tmp_path: Path):
    order = order_of(tmp_path, train_by_size)
    options = trial.LimitOptions.model_validate(order.options)
    trial._predict(order, options)
    told = trial.json.loads((tmp_path / "predicted.json").read_text())

    assert 64 * MIB == told["memory"]
    assert 8 <= told["predicted"] < 512
