"""The command as people and programs use it: files, colours, project files, baselines, progress."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import torch

from harness.doctor import Judging, diagnose
from harness.doctor.judging import Examined
from harness.repairs import make
from reports.commands.doctor import main
from reports.commands.doctor_output import ENDINGS, FORMATS
from reports.commands.doctor_progress import PATIENCE_S, ScanProgress
from tests.harness.checkpoints import copy, edit_tensors, save_adapter, save_base


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("command") / "base")


@pytest.fixture(scope="module")
def sick(base):
    folder = copy(base, base.parent / "sick")
    name = "model.layers.1.mlp.up_proj.weight"
    edit_tensors(folder, lambda t: t | {name: torch.full_like(t[name], float("nan"))})
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No project file above the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)


def told(capsys, *words) -> str:
    main([str(word) for word in words])
    return capsys.readouterr().out


def test_several_files_get_the_forms_of_their_endings(sick, tmp_path, capsys):
    names = ["a.json", "a.md", "a.xml", "a.sarif", "a.html", "a.txt"]
    words = [word for name in names for word in ("--output", str(tmp_path / name))]
    assert main([str(sick), *words]) == 1
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.count("sick: the report is in") == len(names)
    assert json.loads((tmp_path / "a.json").read_text())["verdict"] == "sick"
    assert (tmp_path / "a.md").read_text().startswith("# SICK")
    assert ET.parse(tmp_path / "a.xml").getroot().tag == "testsuites"
    assert json.loads((tmp_path / "a.sarif").read_text())["version"] == "2.1.0"
    assert (tmp_path / "a.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "a.txt").read_text().startswith("SICK - ")
    assert set(ENDINGS.values()) | {"console", "github"} == set(FORMATS)


def test_the_form_that_is_named_wins_over_the_ending(sick, tmp_path, capsys):
    file = tmp_path / "a.html"
    assert main([str(sick), "--format", "json", "--output", str(file)]) == 1
    assert json.loads(file.read_text())["verdict"] == "sick"
    words = ["--format", "json", "--output", "x.json", "--output", "y.json"]
    assert main([str(sick), *words]) == 2
    assert "leave --format out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "is_painted"),
    [
        ({}, False),  # a pipe
        ({"FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ({"FORCE_COLOR": "1", "NO_COLOR": ""}, True),
    ],
)
def test_colours_follow_the_two_variables(sick, monkeypatch, capsys, environment, is_painted):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ("\x1b[31;1mSICK\x1b[0m" in told(capsys, sick)) is is_painted


def test_the_width_is_that_of_the_terminal(sick, monkeypatch, capsys):
    for columns in (40, 60, 160):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = told(capsys, sick).splitlines()
        wrapped = [line for line in lines if max(map(len, line.split()), default=0) < 20]
        assert columns - 30 <= max(map(len, wrapped)) <= columns


def test_a_terminal_of_ascii_gets_ascii(sick):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "reports.commands.doctor", str(sick)],
        env=environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout.decode("ascii").startswith("SICK - ")


def test_what_fails_is_asked_for(sick, base, capsys):
    assert main([str(sick), "--fail-on", "critical"]) == 1
    assert main([str(sick), "--fail-on", "never"]) == 0
    out = capsys.readouterr().out
    assert out.count("SICK - ") == 2  # the verdict is what it is
    assert main([str(base), "--fail-on", "never"]) == 0


def test_an_empty_folder_is_unknown_whatever_fails(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty"), "--fail-on", "never"]) == 3


def test_depth_files_reads_no_value_and_says_so(sick, monkeypatch, capsys):
    def refuse(*_):
        raise AssertionError("values were read")

    monkeypatch.setattr("harness.evidence.values.arrays.read_bytes", refuse)
    assert main([str(sick), "--depth", "files"]) == 0
    out = capsys.readouterr().out
    assert "--depth files does not look so deep" in out
    assert "MPD301" in out


def test_asking_models_and_a_lesser_depth_contradict_each_other(base, capsys):
    assert main([str(base), "--generate", "--depth", "weights"]) == 2
    assert "leave one of them out" in capsys.readouterr().err


def test_a_project_file_is_followed_and_flags_win(sick, base, tmp_path, capsys):
    project = tmp_path / "mudpuppy-doctor.toml"
    project.write_text('[[accept]]\nprobe = "weights-nonfinite"\nreason = "an experiment"\n')
    assert main([str(sick)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "1 finding accepted" in out
    assert "(accepted: an experiment)" in out
    assert main([str(base)]) == 0
    assert "matches no finding and can go" in " ".join(capsys.readouterr().out.split())
    project.write_text('select = ["MPD1"]\nfail-on = "never"\n')
    assert "MPD301" not in told(capsys, sick)
    assert main([str(sick), "--select", "MPD3", "--fail-on", "medium"]) == 1
    project.write_text('[[accept]]\nprobe = "weights-nonfinit"\nreason = "r"\n')
    assert main([str(sick)]) == 2
    assert "did you mean 'weights-nonfinite'" in capsys.readouterr().err


def test_a_checkpoint_does_not_decide_what_is_found_in_it(sick, monkeypatch, capsys):
    file = sick / "mudpuppy-doctor.toml"
    file.write_text('fail-on = "never"\nignore = ["MPD3"]\n')
    monkeypatch.chdir(sick)
    try:
        assert main(["."]) == 1
        assert "lies in the checkpoint and was not read" in capsys.readouterr().err
    finally:
        file.unlink()


def test_only_what_is_new_counts_against_a_baseline(sick, base, tmp_path, capsys):
    earlier = tmp_path / "earlier.json"
    assert main([str(sick), "--output", str(earlier)]) == 1
    assert main([str(sick), "--baseline", str(earlier)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("NO WORSE - ")
    assert "known from the baseline" in out
    worse = copy(sick, tmp_path / "worse")
    name = "model.layers.0.mlp.up_proj.weight"
    edit_tensors(worse, lambda t: t | {name: t[name] * float("nan")})
    assert main([str(worse), "--baseline", str(earlier)]) == 1
    capsys.readouterr()
    assert main([str(base), "--baseline", str(earlier)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("HEALTHY - ")
    assert "gone since the baseline" in out


def test_github_gets_annotations_and_a_summary(sick, tmp_path, monkeypatch, capsys):
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    out = told(capsys, sick, "--format", "github")
    assert "::error title=MPD301 weights-nonfinite::" in out
    text = summary.read_text()
    assert text.startswith("before\n")
    assert "## critical: MPD301" in text


def test_a_finding_with_a_repair_names_its_command(base, sick, tmp_path, capsys):
    folder = copy(base, tmp_path / "two words")
    edit_tensors(folder, lambda t: {f"_orig_mod.{name}": one for name, one in t.items()})
    out = " ".join(told(capsys, folder, "--base", base).split())
    command = f"mudpuppy-doctor '{folder}' --base {base} --fix --only MPD303"
    assert f"mend {command}" in out
    assert f"- mend: `{command}`" in told(capsys, folder, "--base", base, "--format", "markdown")
    assert main([*shlex.split(command)[1:], "--dry-run"]) == 1
    assert "taken out of 30 tensor names" in capsys.readouterr().out
    assert "--fix --only" not in told(capsys, sick)  # nobody can guess what the values were


def test_repairs_are_planned_with_what_was_seen_and_with_the_base_of_the_project(
    base, tmp_path, monkeypatch, capsys
):
    folder = copy(base, tmp_path / "wrapped")
    edit_tensors(folder, lambda t: {f"_orig_mod.{name}": one for name, one in t.items()})
    (tmp_path / "mudpuppy-doctor.toml").write_text(f'base = "{base}"\n')
    plan, asked = make.plan_repairs, []

    def listen(root, diagnosis, options, only=None, *, seen=None):
        known = seen is not None and seen["."].recall("files") is not None
        asked.append((options.base, known))
        return plan(root, diagnosis, options, only, seen=seen)

    monkeypatch.setattr(make, "plan_repairs", listen)
    assert "--fix --only MPD303" in " ".join(told(capsys, folder).split())
    assert asked == [(base, True)]
    assert main([str(folder), "--fix", "--dry-run"]) == 1
    assert asked[1:] == [(base, True), (base, False)]


def test_what_a_server_said_is_not_mended_on_a_copy(base, tmp_path):
    folder = copy(base, tmp_path / "wrapped")
    edit_tensors(folder, lambda t: {f"_orig_mod.{name}": one for name, one in t.items()})
    alone = diagnose(folder)
    (wrapped,) = [one for one in alone.findings if one.code == "MPD303"]
    flood = replace(wrapped, code="MPD601", name="eos-flood", subject="endpoint")
    seen = Examined(results=[flood], subject={"subject": "endpoint", "kind": "served model"})
    both = diagnose(folder, Judging(beside=lambda: seen))

    assert {one.code for one in both.findings} == {"MPD303", "MPD601"}
    assert alone.facts["repairable"] == both.facts["repairable"] == ["MPD303"]


def test_a_failure_mode_is_explained_by_its_probes(capsys):
    out = told(capsys, "explain", "fm17")
    assert out.startswith("FM17 adapter stacking (critical; shows in: files)")
    assert "MPD201" in out
    assert "No checkpoint shows it" in told(capsys, "explain", "FM55")
    for number in range(1, 67):
        assert main(["explain", f"FM{number:02}"]) == 0


def test_the_schema_is_printed(capsys):
    schema = json.loads(told(capsys, "schema"))
    assert schema["properties"]["schema_version"] == {"const": 3}


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def run_scan(stream: io.StringIO, seconds: float) -> str:
    clock = Clock()
    with closing(ScanProgress(stream, clock)) as progress:
        progress.say("reading\x1b[31m 3 GB")
        clock.now_s = seconds
        for done in range(0, 3_000_000_001, 1_000_000_000):
            progress.scanned(done, 3_000_000_000)
    return stream.getvalue()


def test_a_pipe_and_a_short_examination_see_no_progress(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    assert run_scan(io.StringIO(), 60.0) == ""
    assert run_scan(Terminal(), PATIENCE_S / 2) == ""


def test_a_terminal_sees_how_far_a_long_scan_is(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    shown = run_scan(Terminal(), 60.0)
    assert "reading" in shown
    assert "3.0/3.0 GB" in shown
    assert "\x1b[31m 3 GB" not in shown


def test_a_terminal_sees_which_question_is_answered_and_no_bytes(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    clock, stream = Clock(), Terminal()
    with closing(ScanProgress(stream, clock, asks=True)) as progress:
        clock.now_s = 5.0
        progress.scanned(1000, 2000)
        seen = len(stream.getvalue())
        progress.say("q answers question 3 of 20")
    said = stream.getvalue()[seen:]
    assert "q answers question 3 of 20" in said
    assert "?" not in said.replace("[?25", "")
    assert "bytes" not in said.rpartition("question 3")[2]


def test_without_a_terminal_it_is_said_now_and_then_that_models_are_asked():
    stream = io.StringIO()
    with closing(ScanProgress(stream, asks=True, quiet_s=0.05)) as progress:
        progress.say("q answers question 1 of 20")
        progress.say("q answers question 2 of 20")
        assert stream.getvalue() == "mudpuppy-doctor: 0 s: q answers question 1 of 20\n"
        ends = time.monotonic() + 5
        while stream.getvalue().count("question 2") < 2 and time.monotonic() < ends:
            time.sleep(0.01)
    lines = stream.getvalue().splitlines()
    assert lines[1].endswith("question 2 of 20")
    assert len(lines) >= 3
    time.sleep(0.15)
    assert stream.getvalue().splitlines() == lines


def test_the_passes_of_several_folders_follow_each_other(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    clock = Clock()
    stream = Terminal()
    with closing(ScanProgress(stream, clock)) as progress:
        clock.now_s = 5.0
        for total in (1000, 2000):
            for done in (0, total // 2, total):
                progress.scanned(done, total)
        progress.say("asking")
    assert "asking" in stream.getvalue()


def test_help_is_quick(tmp_path):
    words = [sys.executable, "-X", "importtime", "-m", "reports.commands.doctor", "--help"]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--baseline" in done.stdout
    assert "rich" not in {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


@pytest.mark.parametrize("flag", ["base", "adapter"])
def test_a_folder_is_not_compared_with_itself(base, tmp_path, capsys, flag):
    named = base if flag == "base" else save_adapter(tmp_path / "adapter", base)
    assert main([str(named), f"--{flag}", str(named)]) == 2
    assert "is the folder that is examined" in capsys.readouterr().err


def test_the_base_of_a_project_is_examined_too_and_named_by_its_file(base, sick, tmp_path, capsys):
    (tmp_path / "mudpuppy-doctor.toml").write_text(f'base = "{base}"\n')
    assert main([str(base)]) == 0
    capsys.readouterr()
    for words, source in (((), tmp_path / "mudpuppy-doctor.toml"), (("--base", base), "--base")):
        report = json.loads(told(capsys, sick, "--format", "json", *words))
        assert report["facts"]["subjects"][0]["base_named_by"] == str(source)
