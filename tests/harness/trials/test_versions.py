"""Other releases: what pip is asked for, that an environment is kept, and what is a finding."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from harness.evidence.source import CheckpointEvidence
from harness.facts.trials import DeprecatedCall, SmokeCell, Versions
from harness.findings import Status
from harness.matrix import load_cells
from harness.observations import Observations
from harness.registry import load_probes, run_probe
from harness.trials import releases
from harness.trials.releases import make_environment, name_of, requirements_of
from harness.trials.versions import find_deprecated, parse_deprecated
from mudpuppy.errors import EngineError

DEPRECATED, BREAKS = (
    next(p for p in load_probes() if p.code == code) for code in ("MPD748", "MPD749")
)
FINE = Versions(
    releases={"peft": "0.21.0"},
    cells=(SmokeCell(name="lora", outcome="passed", message=""),),
    deprecated=(),
)


def judge(probe: Any, versions: Versions):
    seen = Observations(ending="measured", trial=asdict(versions))
    return run_probe(probe, CheckpointEvidence(Path(), given={"observations": seen}))


def test_a_cell_that_breaks_and_a_deprecated_call_are_findings_of_their_own():
    broken = replace(FINE, cells=(SmokeCell(name="rm", outcome="crashed", message="boom"),))
    old = replace(FINE, deprecated=(DeprecatedCall(site="a.py:3", category="", text="use b"),))

    assert (Status.PASSED, Status.PASSED) == tuple(
        judge(p, FINE).status for p in (DEPRECATED, BREAKS)
    )
    assert Status.FAILED is judge(BREAKS, broken).status
    assert "with peft 0.21.0: rm crashed: boom" == judge(BREAKS, broken).message
    assert Status.PASSED is judge(BREAKS, old).status
    assert "a.py:3: use b" == judge(DEPRECATED, old).message


def test_a_smoke_set_that_was_not_run_is_no_pass():
    empty = replace(FINE, cells=())

    assert {Status.SKIPPED} == {judge(probe, empty).status for probe in (DEPRECATED, BREAKS)}


@pytest.mark.parametrize("name", ["not-run", "failed", "crashed", "timeout", "out-of-memory"])
def test_only_what_came_out_as_expected_is_fine(name):
    cells = (SmokeCell(name="lora", outcome=name, message=""),)

    assert Status.FAILED is judge(BREAKS, replace(FINE, cells=cells)).status


def test_what_pip_is_asked_for(tmp_path: Path):
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["torch>=2.6", "transformers>=5.1,<6", "peft>=0.2", '
        '"trl>=1.1,<2", "numpy>=1.26"]\n'
    )
    (tmp_path / "constraints.txt").write_text(
        "# pins\ntorch==2.13.0\ntransformers==5.3.0\npeft==0.4\ntrl==1.2\nnumpy==2.4\n"
    )

    assert requirements_of("oldest", tmp_path) == [
        *("numpy>=1.26", "peft==0.2", "torch==2.13.0", "transformers==5.1", "trl==1.1")
    ]
    assert requirements_of("pinned", tmp_path) == [
        *("numpy==2.4", "peft==0.4", "torch==2.13.0", "transformers==5.3.0", "trl==1.2")
    ]
    assert requirements_of("newest", tmp_path) == [
        *("numpy>=1.26", "peft>=0.2", "torch==2.13.0", "transformers>=5.1,<6", "trl>=1.1,<2")
    ]


def test_a_library_without_a_floor_has_no_oldest_release(tmp_path: Path):
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["torch", "transformers", "peft>=1", "trl>=1"]\n'
    )
    (tmp_path / "constraints.txt").write_text("torch==2.13.0\n")

    with pytest.raises(EngineError, match="transformers has no oldest"):
        requirements_of("oldest", tmp_path)


def test_the_project_itself_has_all_three_sets():
    for one in ("oldest", "pinned", "newest"):
        asked = requirements_of(one)  # type: ignore[arg-type]
        assert {"torch", "transformers", "peft", "trl"} <= {name_of(line) for line in asked}
        assert any(line.startswith("torch==") for line in asked)


def test_an_environment_is_made_once_and_a_half_made_one_again(tmp_path: Path, monkeypatch):
    calls: list[str] = []

    def run(command: list[str], trouble: str) -> str:
        del trouble
        calls.append(command[2] if command[1] == "-m" else "versions")
        if command[2] == "venv":
            Path(command[3]).mkdir()
        if "pip" in command and calls.count("pip") == 1:
            raise EngineError("no network")
        return '{"peft": "0.21.0"}'

    monkeypatch.setattr(releases, "_run", run)
    with pytest.raises(EngineError):
        make_environment(["peft"], root=tmp_path)
    python, versions = make_environment(["peft"], root=tmp_path)
    made = len(calls)

    assert {"peft": "0.21.0"} == versions
    assert (python, versions) == make_environment(["peft"], root=tmp_path)
    assert made == len(calls)
    assert python != make_environment(["peft"], fresh_for="today", root=tmp_path)[0]


def test_what_pip_says_when_it_fails_is_in_the_error():
    with pytest.raises(EngineError, match="pip could not: exit code 3\nsorry"):
        releases._run(["sh", "-c", "echo sorry; exit 3"], "pip could not")


def test_a_deprecated_call_is_taken_apart():
    found = parse_deprecated("mudpuppy/loading.py:88: torch_dtype is gone: use dtype")

    assert ("mudpuppy/loading.py:88", "torch_dtype is gone: use dtype") == (found.site, found.text)
    assert "what?" == parse_deprecated("what?").text


def test_deprecated_calls_are_those_that_the_smoke_cells_heard(tmp_path: Path):
    cells = load_cells("smoke")
    place = tmp_path / cells[1].cell_id
    place.mkdir()
    Observations(ending="trained", deprecations=("a.py:1: old",)).write(place)

    assert ["a.py:1"] == [one.site for one in find_deprecated(cells, tmp_path)]
