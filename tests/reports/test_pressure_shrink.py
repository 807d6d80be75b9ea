"""mudpuppy-pressure shrink, and run --shrink, from the outside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import reports.commands.pressure
import reports.commands.pressure_shrink
from harness.pools.spawn import SpawnPool
from reports.commands.pressure import main
from tests.harness import fake_worker
from tests.harness.test_shrink import SMALL, judge

FOUND = [
    "smallest failing combination: lora + fp32 + dora + packing (failed, MPD203)",
    "   needs: dora, packing",
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for command in (reports.commands.pressure, reports.commands.pressure_shrink):
        monkeypatch.setattr(command, "make_pool", lambda _: SpawnPool(fake_worker.COMMAND))
        monkeypatch.setattr(command, "_load_judge", lambda: judge)
    (tmp_path / "small.yaml").write_text(SMALL, encoding="utf-8")
    return tmp_path


def test_a_run_that_shrinks_shows_the_smallest_combination_first(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["run", "small.yaml", "--shrink", "--select", "lora-*"])

    lines = capsys.readouterr().out.splitlines()
    place = lines.index(FOUND[0])
    assert code == 1
    assert lines[place : place + 3] == [
        *FOUND,
        "   explains: lora-fp32-packing-dora, lora-fp32-packing-dora-logging, "
        "lora-bf16-packing-dora, lora-bf16-packing-dora-logging",
    ]
    assert any("again:" in line for line in lines[place:]), "the failures follow"
    report = json.loads((folder / "runs/small/report.json").read_text("utf-8"))
    assert [one["factors"] for one in report["smallest"]] == [["dora", "packing"]]
    text = (folder / "runs/small/report.md").read_text("utf-8")
    assert text.index("Smallest failing combinations") < text.index("## Failures")


def test_a_run_without_it_shrinks_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "small.yaml", "--select", "lora-fp32-*"]) == 1

    assert "smallest" not in capsys.readouterr().out
    assert not (folder / "runs/small/shrink").exists()


def test_one_cell_is_shrunk_step_by_step(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shrink", "small.yaml", "qlora-bf16-packing-dora-logging"]) == 1

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("qlora-bf16-packing-dora-logging: looking for its smallest part")
    assert "  passes                    lora + fp32" in lines
    assert lines[-4:-2] == FOUND

    assert main(["shrink", "small.yaml", "lora-fp32-dora", "--budget", "1"]) == 0
    assert "it does not fail" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["shrink", "small.yaml", "lora-fp33"], "did you mean 'lora-fp32"),
        (["shrink", "small.yaml", "lora-fp32", "--budget", "-1"], "a budget of -1 cells"),
        (["shrink", "small.yaml", "lora-fp32", "--budget", "0"], "nothing may be run"),
        (["run", "small.yaml", "--shrink", "-3"], "a budget of -3 cells"),
        (["shrink", "small.yaml", "lora-fp32", "--plant", "nonsense"], "no planted bug is called"),
    ],
)
def test_a_mistake_is_exit_code_2(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[Any], message: str
) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err
