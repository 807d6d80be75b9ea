"""The coverage of a matrix is counted from the settings of its cells."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.coverage import measure_cells
from harness.matrix import Cell, expand
from mudpuppy.features import METHODS, PRECISIONS
from mudpuppy.rules import decide
from reports.coverage_text import summarise_coverage, write_coverage
from scenarios.loader import LoadedScenarios, load_scenarios

TEXT = """\
schema_version: 1
name: small
defaults: {model: tiny, dataset: data.jsonl}
covering: {method: [lora, full], precision: [bf16], feature: [packing, dora, compile]}
"""


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedScenarios:
    (tmp_path / "small.yaml").write_text(TEXT)
    return load_scenarios(tmp_path / "small.yaml")


def covered(loaded: LoadedScenarios, cells: tuple[Cell, ...]) -> dict:
    assert loaded.form.covering is not None
    return measure_cells(loaded.form.covering, cells).to_json()


def test_the_rows_of_a_file_cover_all_that_can_meet(loaded: LoadedScenarios) -> None:
    found = covered(loaded, expand(loaded))

    # of 3 x 4 pairs: lora cannot pack and compile at once; full has no dora either
    assert (11 + 7, 11 + 7) == (found["feasible"], found["covered"])
    assert 1.0 == found["share"]
    assert [("lora", 11), ("full", 7)] == [(g["method"], g["feasible"]) for g in found["groups"]]


def test_a_cell_that_did_not_run_is_missing(loaded: LoadedScenarios) -> None:
    cells = tuple(cell for cell in expand(loaded) if "dora" not in cell.features)

    found = covered(loaded, cells)

    with_dora = [words for words in found["missing"] if ", dora" in words or ": dora" in words]
    assert 4 == len(with_dora)
    assert "lora bf16: packing, dora" in with_dora
    assert found["share"] < 1.0
    assert "  missing: lora bf16: packing, dora" in write_coverage(found).splitlines()


def test_a_rejected_cell_covers_nothing(tmp_path: Path, loaded: LoadedScenarios) -> None:
    axes = TEXT.replace("covering", "axes").replace("[packing", "[packing+compile, packing")
    (tmp_path / "axes.yaml").write_text(axes)
    cells = expand(load_scenarios(tmp_path / "axes.yaml"))
    rejected = tuple(cell for cell in cells if cell.expect.outcome == "rejected")

    assert rejected
    assert 0 == covered(loaded, rejected)["covered"]


def test_ten_thousand_that_lack_one_are_not_a_hundred_percent() -> None:
    part = {"strength": 2, "feasible": 30_000, "covered": 29_999, "rows": 9, "share": 29_999 / 3e4}

    assert summarise_coverage(part).endswith("meet in 9 cells: 99.99%")
    assert summarise_coverage({**part, "share": 1.0}).endswith("100%")


@pytest.mark.slow
def test_every_pair_of_features_meets_every_method_and_precision() -> None:
    loaded = load_scenarios("pairs")
    cells = expand(loaded)

    found = covered(loaded, cells)

    accepted = {(m, p) for m in METHODS for p in PRECISIONS if decide(m, p).accepted}
    assert accepted == {(g["method"], g["precision"]) for g in found["groups"] if g["feasible"]}
    assert (1.0, []) == (found["share"], found["missing"])
    assert found["feasible"] > 30_000
    assert len(cells) < 800
