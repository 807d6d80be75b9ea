"""The cold sample: both ways run, and whatever differs is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.cold_sample import compare_isolations
from harness.execution import RunOptions
from harness.pools.spawn import SpawnPool
from reports.commands import pressure
from tests.harness import fake_worker

MATRIX = """\
schema_version: 1
name: small
defaults: {model: none, dataset: data.jsonl, method: lora}
scenarios:
  - {name: pass-one, config: {seed: 1}}
  - {name: fail-two, config: {seed: 2}}
"""


def make_pool(isolation: str) -> Any:
    return SpawnPool(fake_worker.COMMAND) if isolation == "spawn" else fake_worker.make_warm_pool()


def compare(run_dir: Path, *names: str, number: int, seed: str = "a", judge: Any = None) -> Any:
    options = RunOptions(judge=judge or fake_worker.judge, environment={})
    cells = fake_worker.make_cells(*names)
    return compare_isolations(cells, run_dir, options, make_pool, number=number, seed=seed)


def test_both_ways_run_and_agree(tmp_path: Path):
    found = compare(tmp_path, "pass-a", "fail-b", number=2)

    assert {"pass-a": "", "fail-b": ""} == {one.name: one.difference for one in found}
    for one in found:
        assert one.warm.worker is not None
        assert one.cold.worker is not None
        assert ("engine", "none") == (one.warm.worker.preload, one.cold.worker.preload)


def test_what_differs_is_said(tmp_path: Path):
    def judge(cell: Any, folder: Path, ended: Any) -> Any:
        losses = [1.0, 0.5 if ended.preload == "engine" else 0.25]
        seen = {"schema_version": 1, "ending": "trained", "losses": losses}
        (folder / "observations.json").write_text(json.dumps(seen), encoding="utf-8")
        return fake_worker.judge(cell, folder, ended)

    (one,) = compare(tmp_path, "pass-a", number=1, judge=judge)

    assert "losses: warm [1.0, 0.5], cold [1.0, 0.25]" == one.difference


def test_the_seed_draws_the_sample(tmp_path: Path):
    names = [f"pass-{number}" for number in range(20)]

    drawn = [
        {one.name for one in compare(tmp_path / str(index), *names, number=2, seed=seed)}
        for index, seed in enumerate("aab")
    ]

    assert drawn[0] == drawn[1] != drawn[2]


def test_the_command_prints_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pressure, "make_pool", make_pool)
    monkeypatch.setattr(pressure, "_load_judge", lambda: fake_worker.judge)
    (tmp_path / "small.yaml").write_text(MATRIX, encoding="utf-8")

    code = pressure.main(["run", "small.yaml", "--cold-sample", "2"])

    out = capsys.readouterr().out
    assert 0 == code
    assert "pass-one  passed  0." in out
    assert "2 of 2 cells came out the same in a fork and in a clean interpreter" in out
