"""The soak trial: a leak is found, a steady process is not accused, and doubt is no pass."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from harness.evidence.source import CheckpointEvidence
from harness.facts.trials import Growth, Soak
from harness.findings import Status
from harness.observations import Observations
from harness.registry import load_probes, run_probe
from harness.trials.order import Order
from harness.trials.soak import SoakOptions, describe, is_decided, measure_process, perform

ROWS = Path(__file__).parents[3] / "scenarios/data/new_facts.jsonl"
MEMORY, HANDLES = (
    next(p for p in load_probes() if p.code == code) for code in ("MPD740", "MPD741")
)


def judge(probe: Any, soak: Soak):
    seen = Observations(ending="measured", trial=asdict(soak))
    return run_probe(probe, CheckpointEvidence(Path(), given={"observations": seen}))


def growth(quantity: str, low: float, high: float, bound: float) -> Growth:
    middle = (low + high) / 2
    return Growth(
        quantity=quantity, slope=middle, low=low, high=high, bound=bound, values=(4.0, 5.0)
    )


def soak_of(*growths: Growth) -> Soak:
    return Soak(cycles=20, warmup=4, growths=growths)


@pytest.mark.parametrize(
    ("quantity", "probe", "low", "high", "status"),
    [
        ("host memory", MEMORY, 11, 14, Status.FAILED),
        ("device memory", MEMORY, 11, 14, Status.FAILED),
        ("host memory", MEMORY, -2, 9, Status.PASSED),
        ("host memory", MEMORY, 9, 11, Status.SKIPPED),
        ("open files", HANDLES, 11, 14, Status.FAILED),
        ("threads", HANDLES, 11, 14, Status.FAILED),
        ("threads", HANDLES, 0, 0, Status.PASSED),
        ("threads", HANDLES, 9, 11, Status.SKIPPED),
    ],
)
def test_only_growth_beyond_doubt_is_a_finding_and_doubt_is_no_pass(
    quantity, probe, low, high, status
):
    found = judge(probe, soak_of(growth(quantity, low, high, 10)))

    assert status is found.status


def test_each_probe_asks_for_its_own_quantities():
    assert Status.SKIPPED is judge(MEMORY, soak_of(growth("threads", 0, 0, 1))).status
    assert Status.SKIPPED is judge(HANDLES, soak_of(growth("host memory", 0, 0, 1))).status


def test_a_steady_series_is_decided_and_a_noisy_one_is_not():
    options = SoakOptions(bytes_per_cycle=10)
    steady = describe({"host memory": [5.0] * 8}, options)
    noisy = describe({"host memory": [0.0, 400.0, -300.0, 100.0, 350.0]}, options)

    assert is_decided(steady.growths[0])
    assert not is_decided(noisy.growths[0])


def test_a_process_is_measured_by_what_it_really_holds():
    before = measure_process()
    held = bytearray(b"x") * (32 << 20)
    with ROWS.open():
        during = measure_process()
    del held
    after = measure_process()

    assert during["host memory"] - before["host memory"] > 24 << 20
    assert during["open files"] == before["open files"] + 1
    assert after["host memory"] - before["host memory"] < 8 << 20


def test_an_unknown_option_is_refused():
    with pytest.raises(ValidationError):
        SoakOptions.model_validate({"cycle": 3})


def order_of(folder: Path, train: Any, **options: Any) -> Order:
    return Order(
        folder=folder,
        config={"model": "tiny:llama", "dataset": str(ROWS), "method": "lora", "max_steps": 1},
        options={"warmup": 4, "cycles": 6, "max_cycles": 24, "bytes_per_cycle": 200_000} | options,
        expect={},
        train=train,
        import_engine=lambda: None,
    )


def train_in_vain(config: Any, *, watcher: Any = None, **others: Any) -> None:
    """Stand in for the engine: make a folder, hand over a model of a megabyte."""
    del others
    config.output.mkdir()
    if watcher is not None:
        watcher.on_fitted(bytearray(b"x") * (1 << 20))


def test_the_planted_list_of_models_is_found(tmp_path: Path):
    seen = perform(order_of(tmp_path, train_in_vain, keep_models=True))
    found = run_probe(MEMORY, CheckpointEvidence(tmp_path, given={"observations": seen}))

    assert Status.FAILED is found.status
    assert "host memory grows by" in found.message


def test_an_engine_that_holds_nothing_is_not_accused_and_leaves_no_artefact(tmp_path: Path):
    seen = perform(order_of(tmp_path, train_in_vain))
    source = CheckpointEvidence(tmp_path, given={"observations": seen})

    assert Status.PASSED is run_probe(MEMORY, source).status
    assert Status.PASSED is run_probe(HANDLES, source).status
    assert json.loads((tmp_path / "soak.json").read_text())["cycles"] == seen.trial["cycles"]
    assert not (tmp_path / "cycle").exists()


def test_an_open_file_a_cycle_is_found(tmp_path: Path):
    kept = []

    def train(config: Any, **others: Any) -> None:
        train_in_vain(config, **others)
        kept.append(ROWS.open())

    seen = perform(order_of(tmp_path, train))
    found = run_probe(HANDLES, CheckpointEvidence(tmp_path, given={"observations": seen}))

    assert Status.FAILED is found.status
    assert "open files grow by 1.00 a cycle" in found.message
