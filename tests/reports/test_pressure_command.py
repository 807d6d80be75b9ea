"""mudpuppy-pressure from the outside: what it prints, writes and returns."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import reports.commands.pressure_list
from harness.pools.spawn import SpawnPool
from reports.commands.pressure import main
from tests.harness import fake_worker

MATRIX = """\
schema_version: 1
name: small
defaults: {model: none, dataset: data.jsonl, method: lora}
scenarios:
  - {name: pass-one, title: One, config: {seed: 1}}
  - {name: fail-two, title: Two, config: {seed: 2}}
  - {name: reject-three, title: Three, config: {stream: true}}
"""


def make_fake_pool(isolation: str) -> SpawnPool:
    return SpawnPool(fake_worker.COMMAND)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reports.commands.pressure, "make_pool", make_fake_pool)
    monkeypatch.setattr(reports.commands.pressure, "_load_judge", lambda: fake_worker.judge)
    (tmp_path / "small.yaml").write_text(MATRIX, encoding="utf-8")
    return tmp_path


def test_a_run_writes_both_reports_and_one_folder_per_cell(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["run", "small.yaml"])

    out = capsys.readouterr().out.splitlines()
    report = json.loads((folder / "runs/small/report.json").read_text(encoding="utf-8"))
    assert code == report["exit_code"] == 1
    assert out[-2:] == [
        "failed: 1 failed; 2 of 3 cells came out as expected, 1 of them by rejection.",
        "report: runs/small/report.md",
    ]
    assert out[0].startswith("1/3  passed                pass-one  loss 2.000 -> 1.000")
    assert "MPD203" in (folder / "runs/small/report.md").read_text(encoding="utf-8")
    for cell in report["cells"]:
        assert (folder / "runs/small" / cell["cell_id"] / "result.json").is_file()


def test_a_second_run_keeps_what_is_finished(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["run", "small.yaml"])
    capsys.readouterr()

    main(["run", "small.yaml", "--rerun", "failed"])

    out = capsys.readouterr().out
    starts = (folder / "runs/small/starts.txt").read_text(encoding="utf-8").split()
    assert starts == ["pass-one", "fail-two", "reject-three", "fail-two"]
    assert "2 results kept from an earlier run" in out


def test_selected_cells_alone_decide_the_exit_code(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["run", "small.yaml", "--ignore", "fail-*", "-o", "elsewhere", "-q"])

    assert code == 0
    assert capsys.readouterr().out == (
        "passed: 2 of 2 cells came out as expected, 1 of them by rejection; 1 did not run.\n"
        "report: elsewhere/report.md\n"
    )


def test_a_planted_bug_has_a_folder_of_its_own(folder: Path) -> None:
    main(["run", "small.yaml", "--plant", "eos-masked", "-q"])

    assert (folder / "runs/small-eos-masked/report.md").is_file()
    assert not (folder / "runs/small").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "smal.yaml"], "there is no scenario file 'smal.yaml'"),
        (["run", "small.yaml", "--select", "pass-on"], "did you mean 'pass-one'?"),
        (["run", "small.yaml", "--plant", "eos-maskd"], "did you mean 'eos-masked'?"),
        (["run", "small.yaml", "-j", "0"], "-j 0: expected 1 or more"),
        (["run", "small.yaml", "-o", "small.yaml/x"], "small.yaml/x: cannot be written"),
        (["list", "small.yaml", "--ignore", "*"], "nothing is left to run"),
        (["explain", "small.yaml", "pass-on"], "did you mean 'pass-one'?"),
        (["explain", "a", "b", "c"], "expected one file and one cell"),
    ],
)
def test_a_mistake_is_exit_code_2_and_nothing_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    code = main(words)

    assert code == 2
    assert message in capsys.readouterr().err
    assert [one.name for one in folder.iterdir()] == ["small.yaml"]


def test_list_shows_every_cell(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["list", "small.yaml"])

    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert code == 0
    assert [line[:4] for line in lines[2:4]] == [
        ["1", "pass-one", "trained", lines[2][3]],
        ["2", "fail-two", "trained", lines[3][3]],
    ]
    assert lines[4][:4] == ["3", "reject-three", "rejected", "MP-R07"]
    assert lines[-1] == ["3", "cells", "of", "small.yaml", "(small)"]


def test_explain_gives_settings_rules_and_commands(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["explain", "small.yaml", "3", "--model", "other"])

    out = capsys.readouterr().out
    assert code == 0
    assert "expected  rejected MP-R07" in out
    assert "  model: other" in out
    assert "MP-R07 lora-with-streaming" in out
    again = "mudpuppy-pressure run small.yaml --select reject-three --rerun all --model other"
    assert f"  {again}\n" in out


def test_explain_without_a_file_looks_into_the_seed_matrix(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "lora-streaming-rejected"]) == 0
    assert capsys.readouterr().out.startswith("7. LoRA + streaming validation")


@pytest.mark.parametrize(
    "words", [["list", "seed"], ["explain", "gptq"], ["run", "--help"], ["--help"]]
)
def test_it_answers_without_importing_torch(words: list[str]) -> None:
    script = (
        "import sys; from reports.commands.pressure import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'peft', 'trl', 'datasets'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )

    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")


DRIVER = """
    import sys
    import fake_worker, reports.commands.pressure as command
    from harness.pools.spawn import SpawnPool
    command.make_pool = lambda isolation: SpawnPool(fake_worker.COMMAND)
    command._load_judge = lambda: fake_worker.judge
    sys.exit(command.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_finished_cells_and_says_how_to_go_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    matrix = MATRIX.replace("fail-two", "hang-two")
    (tmp_path / "small.yaml").write_text(matrix, encoding="utf-8")
    words = ["run", "small.yaml", "--rerun", "all"]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(DRIVER), *words],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": fake_worker.PATH},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    starts = tmp_path / "runs/small/starts.txt"
    end = time.monotonic() + 20
    while not (starts.exists() and "hang-two" in starts.read_text(encoding="utf-8")):
        assert time.monotonic() < end
        time.sleep(0.02)

    process.send_signal(number)
    out, err = process.communicate(timeout=10)

    assert process.returncode == 130
    assert "passed" in out
    assert "Traceback" not in err
    assert err.endswith("  go on with: mudpuppy-pressure run small.yaml\n")
    assert len(list((tmp_path / "runs/small").glob("*/result.json"))) == 1


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["mutants", "--list"], "harness.planting.choose_mutants"),
        (["shrink", "seed", "1"], "reports.commands.pressure_shrink.load_scenarios"),
    ],
)
def test_sigterm_ends_every_command_as_an_interrupt_does(
    words: list[str],
    place: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def be_terminated(*_: object) -> None:
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(place, be_terminated)

    assert main(words) == 130
    assert capsys.readouterr().err == "mudpuppy-pressure: interrupted\n"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        (["--repeat", "3"], "--repeat"),
        (["-x", "--gpus", "0"], "--fail-fast and no --gpus"),
        (["--cold-sample", "2"], "--cold-sample"),
    ],
)
def test_what_ray_does_not_know_is_refused_and_not_ignored(
    folder: Path, words: list[str], flags: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "small.yaml", "--pool", "ray", *words]) == 2
    assert f"--pool ray knows no {flags}\n" in capsys.readouterr().err
    assert not (folder / "runs").exists()


def test_a_misspelt_flag_of_a_subcommand_is_told_its_neighbours(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["run", "seed", "--selekt", "x"])
    assert stopped.value.code == 2
    assert "did you mean '--select'" in capsys.readouterr().err


def test_a_crash_of_the_program_is_no_failed_cell(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(reports.commands.pressure_list, "load_scenarios", crash)
    assert main(["list", "small.yaml"]) == 3
    assert "ZeroDivisionError: by zero" in capsys.readouterr().err


def test_escapes_in_a_scenario_reach_no_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    title = '"red \\e[31m and \\u202e back"'
    (folder / "small.yaml").write_text(MATRIX.replace("title: One", f"title: {title}"))

    assert main(["list", "small.yaml"]) == 0
    assert main(["explain", "small.yaml", "pass-one"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert out.count("\\x1b[31m") == 2


def test_cells_can_be_chosen_by_how_they_ended_last(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", "small.yaml", "--select", "failed"]) == 2
    assert "'failed' asks the history, and there is none yet" in capsys.readouterr().err

    main(["run", "small.yaml"])
    capsys.readouterr()

    assert main(["list", "small.yaml", "--select", "failed"]) == 0
    assert "1 cells of small.yaml" in (out := capsys.readouterr().out)
    assert "fail-two" in out
    assert main(["history"]) == 0
    assert "small      2     1      0     0" in capsys.readouterr().out


def test_a_dry_run_shows_what_would_run_and_leaves_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.rglob("*"))

    assert 0 == main(["run", "full", "--sample", "3", "--seed", "x", "--dry-run"])

    said = capsys.readouterr().out
    assert "of 1716 cells would run" in said
    assert "1713 would not: left out by --sample 3 --seed x" in said
    assert before == sorted(folder.rglob("*"))


def test_a_sample_is_drawn_by_the_date_and_says_how_to_draw_it_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert 0 == main(["list", "full", "--sample", "3"])
    first = capsys.readouterr().out
    (again,) = re.findall(r"--sample 3 --seed \d{4}-\d\d-\d\d", first)
    assert 0 == main(["list", "full", *again.split()])

    assert first == capsys.readouterr().out


def test_a_seed_without_a_sample_is_a_slip(capsys: pytest.CaptureFixture[str]) -> None:
    assert 2 == main(["list", "full", "--seed", "1"])
    assert "give --sample N as well" in capsys.readouterr().err


def test_coverage_is_told_of_files_with_a_covering_array_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "few.yaml"
    path.write_text(
        "schema_version: 1\nname: few\ndefaults: {model: tiny, dataset: d.jsonl}\n"
        "covering: {method: [lora], precision: [bf16], feature: [packing, dora, rslora]}\n"
    )
    assert 0 == main(["list", str(path), "--coverage"])
    assert "12 of 12 pairs of features" in capsys.readouterr().out

    assert 1 == main(["list", str(path), "--coverage", "--select", "1"])
    assert "missing: lora bf16: " in capsys.readouterr().out

    assert 2 == main(["list", "seed", "--coverage"])
    assert "no covering array" in capsys.readouterr().err


def test_the_schema_is_printed_as_it_is_checked_in(capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == main(["schema"])

    checked_in = Path(__file__).parents[2] / "docs" / "scenario.schema.json"
    assert checked_in.read_text(encoding="utf-8") == capsys.readouterr().out


def test_rejections_are_forced_beside_the_run_and_change_no_verdict(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = MATRIX.replace("fail-two", "pass-two").replace("reject-three", "pass-three")
    (folder / "small.yaml").write_text(text)

    assert 0 == main(["run", "small.yaml", "--audit-rejections"])

    said = capsys.readouterr().out
    assert "forcing 1 rejected cells" in said
    assert "1 of 1 rejected combinations would have worked by force" in said
    (forced,) = [one for one in (folder / "runs/small/audit").iterdir() if one.is_dir()]
    order = json.loads((forced / "config.json").read_text())
    assert ({"without_rules": ["MP-R07"]}, "trained") == (
        order["options"], order["expect"]["outcome"],
    )  # fmt: skip
    report = json.loads((folder / "runs/small/report.json").read_text())
    assert [True] == [one["works"] for one in report["audit"]]
    assert 3 == len(report["cells"])
