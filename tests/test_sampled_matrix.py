"""A slice of the whole matrix, as a person runs it: other cells each day, the seed is printed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CELLS = int(os.environ.get("MUDPUPPY_SAMPLED_CELLS", "32"))


@pytest.mark.timeout(900)
def test_a_slice_of_the_whole_matrix_comes_out_as_expected(tmp_path: Path):
    command = [
        *(sys.executable, "-m", "reports.commands.pressure", "run", "full"),
        *("--sample", str(CELLS), "-j", "2", "-o", str(tmp_path / "run")),
        *("--history", str(tmp_path / "history.sqlite")),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout)  # pytest shows it where the test fails: the seed to draw the slice again

    assert 0 == done.returncode, done.stdout + done.stderr
    assert f"of {CELLS} cells came out as expected" in done.stdout
