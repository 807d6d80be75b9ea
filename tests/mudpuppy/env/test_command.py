"""`mud-puppy env` says what is wrong and what to type, and its exit code says whether to train."""

import argparse
import json
from importlib import metadata
from pathlib import Path

import pytest

from mudpuppy.env import command
from mudpuppy.errors import UsageError
from tests.mudpuppy.env.recorded import FOLDER


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(words))


@pytest.mark.parametrize(
    ("name", "code"), [("seed_001_settings", 1), ("rx7900xtx_igpu", 0), ("cpu", 0), ("mi300x", 0)]
)
def test_the_exit_code_is_1_where_something_blocks(name: str, code: int):
    assert code == run("--facts", str(FOLDER / f"{name}.json"))


def test_the_text_says_what_is_wrong_and_what_to_type(capsys: pytest.CaptureFixture[str]):
    run("--facts", str(FOLDER / "seed_001_settings.json"))
    lines = capsys.readouterr().out.splitlines()

    assert "torch      2.9.1+rocm6.4, for ROCm (HIP 6.4.43484)" == lines[0]
    assert any(line.startswith("BLOCKS MP-T11 allocator-pair") for line in lines)
    assert any("do:  unset PYTORCH_HIP_ALLOC_CONF   # " in line for line in lines)
    assert "1 of 6 findings would stop or spoil a run: mend them first" == lines[-1]


def test_this_machine_is_described_and_its_facts_can_be_judged_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HSA_ENABLE_SDMA", "0")
    monkeypatch.setenv("SECRET_TOKEN", "hush-hush")
    first = run("--format", "json")
    written = capsys.readouterr().out
    (tmp_path / "facts.json").write_text(written)

    facts = json.loads(written)["facts"]
    assert metadata.version("torch").startswith(facts["torch"]["version"].partition("+")[0])
    assert "0" == facts["variables"]["HSA_ENABLE_SDMA"]
    assert "hush-hush" not in written
    assert first == run("--format", "json", "--facts", str(tmp_path / "facts.json"))
    assert written == capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"facts": 3}'])
def test_a_file_that_holds_no_facts_is_refused(tmp_path: Path, content: str):
    (tmp_path / "facts.json").write_text(content)

    with pytest.raises(UsageError):
        run("--facts", str(tmp_path / "facts.json"))
