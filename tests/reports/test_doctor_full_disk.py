"""A standard output without room is said in one line, and is no finding."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.checkpoints import save_base

FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="no device that is always full")
@pytest.mark.parametrize("words", ["CHECKPOINT", "CHECKPOINT --format json", "list", "schema"])
def test_a_full_disk_is_said_in_one_line(tmp_path, words):
    base = save_base(tmp_path / "base")
    given = words.replace("CHECKPOINT", str(base)).split()
    with FULL.open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "reports.commands.doctor", *given],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert done.returncode == 3
    assert "standard output cannot be written: No space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
