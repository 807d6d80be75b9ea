"""The whole line of data, as a person runs it: the seed matrix, and bugs planted on purpose."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.judge import judge_cell
from harness.mutants import MUTANTS
from harness.planting import plan_cells, run_mutants
from mudpuppy.tiny import tiny_path

ROOT = Path(__file__).parents[1]
SEED = ROOT / "scenarios" / "seed.yaml"


@pytest.fixture(scope="module", autouse=True)
def embedded_model() -> Path:
    """Make the embedded model once, so that no cell's time limit has to cover it."""
    return tiny_path()


@pytest.mark.timeout(600)
def test_the_seed_matrix_comes_out_as_expected_and_a_second_run_keeps_it(tmp_path: Path):
    command = [
        *(sys.executable, "-m", "reports.commands.pressure"),
        *("run", str(SEED), "-o", str(tmp_path / "run"), "-j", "2"),
    ]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert 0 == first.returncode, first.stdout + first.stderr
    assert "11 of 11 cells came out as expected, 1 of them by rejection" in first.stdout
    assert f"report: {tmp_path / 'run'}" in first.stdout
    assert "# Pressure matrix seed: passed" in (tmp_path / "run" / "report.md").read_text()
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert 11 == len(report["cells"])
    assert all((tmp_path / "run" / cell["cell_id"]).is_dir() for cell in report["cells"])

    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert 0 == second.returncode
    assert "11 results kept from an earlier run" in second.stdout


@pytest.mark.parametrize("name", ["eos-masked", "streaming-rejection-removed"])
def test_a_planted_bug_makes_the_matrix_fail(tmp_path: Path, name: str):
    cells = plan_cells([MUTANTS[name]])

    (result,) = run_mutants([MUTANTS[name]], tmp_path, judge=judge_cell, cells=cells, jobs=2)

    assert "caught" == result.ending
    (catch,) = result.catches
    assert catch.outcome not in ("passed", "rejected-as-expected")
    assert set(MUTANTS[name].caught_by) & {catch.outcome, *catch.codes}
