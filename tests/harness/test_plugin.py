"""The pytest plugin: cells are items, failures say everything, nothing runs unasked."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import harness.plugin
from harness.pools.spawn import SpawnPool
from tests.harness import fake_worker

MATRIX = """\
schema_version: 1
name: small
defaults: {model: none, dataset: data.jsonl, method: lora}
scenarios:
  - {name: pass-one, config: {seed: 1}}
  - {name: fail-two, config: {seed: 2}}
  - {name: reject-three, config: {stream: true}}
  - {name: skip-four, config: {seed: 4}}
  - {name: segfault-five, config: {seed: 5}}
"""
CONFTEST = f"""
import sys
sys.path.insert(0, {str(fake_worker.HERE.parent)!r})
import fake_worker
import harness.plugin
from harness.pools.spawn import SpawnPool
harness.plugin._make_pool = lambda: SpawnPool(fake_worker.COMMAND)
harness.plugin._load_judge = lambda: fake_worker.judge
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setattr(harness.plugin, "_make_pool", lambda: SpawnPool(fake_worker.COMMAND))
    monkeypatch.setattr(harness.plugin, "_load_judge", lambda: fake_worker.judge)
    monkeypatch.setenv("TMPDIR", str(pytester.path))  # what failures leave to be looked at
    monkeypatch.setattr(tempfile, "tempdir", None)
    pytester.makepyfile(test_other="def test_other(): pass")
    (pytester.path / "small.yaml").write_text(MATRIX, encoding="utf-8")
    (pytester.path / "foreign.yaml").write_text("not: ours", encoding="utf-8")
    pytester.makeini("[pytest]\naddopts = -m 'not pressure' -p no:cacheprovider\n")
    return pytester


def run(project: pytest.Pytester, *words: str) -> pytest.RunResult:
    return project.runpytest_inprocess("-m", "pressure", "--pressure-matrix", "small.yaml", *words)


def test_every_cell_is_an_item_with_its_own_ending(project: pytest.Pytester) -> None:
    result = run(project, "-v")

    lines = [line.split(" [")[0].rstrip() for line in result.outlines if line.startswith("small.")]
    assert [" ".join(line.split()) for line in lines] == [
        "small.yaml::pass-one PASSED",
        "small.yaml::fail-two FAILED",
        "small.yaml::reject-three REJECTED AS EXPECTED",
        "small.yaml::skip-four SKIPPED (no GPU here)",
        "small.yaml::segfault-five FAILED",
    ]
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines("*2 failed, 1 passed, 1 skipped*1 rejected as expected*")


def test_a_failure_shows_outcome_findings_and_output(project: pytest.Pytester) -> None:
    result = run(project, "--pressure-select", "fail-two", "--pressure-select", "segfault-*")

    result.stdout.fnmatch_lines(
        [
            "*fail-two (small.yaml)*",
            "failed: 1 finding: the adapter never moved",
            "MPD203 adapter-never-trained: 12 of 12 adapter tensors never moved",
            "  because: no optimizer steps",
            "  fix: train it",
            "folder: *",
            "*Captured stdout*",
            "cell fail-two says hello",
            "*segfault-five (small.yaml)*",
            "crashed: ended by SIGSEGV",
            "cell segfault-five says hello",
        ]
    )
    assert "Traceback" not in result.stdout.str()


def test_plain_pytest_never_runs_a_cell(project: pytest.Pytester) -> None:
    result = project.runpytest_inprocess("--pressure-matrix", "small.yaml", ".")

    result.assert_outcomes(passed=1, deselected=5)


def test_only_the_wanted_file_is_collected(project: pytest.Pytester) -> None:
    result = project.runpytest_inprocess("-m", "")

    result.assert_outcomes(passed=1)


def test_expected_rejections_show_the_letter_r(project: pytest.Pytester) -> None:
    result = run(project, "--pressure-select", "3")

    result.stdout.fnmatch_lines("small.yaml R*")
    assert result.ret == 0


def test_the_cells_folders_are_kept_where_one_says(project: pytest.Pytester) -> None:
    result = run(project, "--pressure-select", "pass-one", "--pressure-output", "kept")

    assert result.ret == 0
    assert len(list((project.path / "kept").glob("*/result.json"))) == 1


def test_xdist_and_junit_see_the_same_outcomes(project: pytest.Pytester) -> None:
    project.makeconftest(CONFTEST)  # its workers are other processes

    result = run(project, "-n", "2", "--junitxml", "out.xml", "--pressure-output", "kept")

    result.stdout.fnmatch_lines("*2 failed, 1 passed, 1 skipped*1 rejected as expected*")
    cases = ET.parse(project.path / "out.xml").getroot().iter("testcase")
    properties = {
        case.attrib["name"]: [p.attrib["value"] for p in case.iter("property")] for case in cases
    }
    assert properties == {
        "pass-one": ["passed"],
        "fail-two": ["failed"],
        "reject-three": ["rejected-as-expected"],
        "skip-four": ["not-run"],
        "segfault-five": ["crashed"],
    }
    assert len(list((project.path / "kept").glob("*/result.json"))) == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--pressure-matrix", "none.yaml"),
            "*--pressure-matrix none.yaml: there is no scenario file*",
        ),
        (("--pressure-matrix", "foreign.yaml"), "*unknown key 'not'*"),
        (
            ("--pressure-matrix", "small.yaml", "--pressure-select", "pass-on"),
            "*'pass-on' matches no cell; did you mean 'pass-one'?*",
        ),
    ],
)
def test_a_wrong_word_is_an_error_and_not_an_empty_run(
    project: pytest.Pytester, words: tuple[str, ...], message: str
) -> None:
    result = project.runpytest_inprocess("-m", "pressure", *words)

    assert result.ret in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.INTERRUPTED)
    assert [line for line in result.outlines + result.errlines if _matches(line, message)]


def _matches(line: str, pattern: str) -> bool:
    return Path(line.replace("/", "_")).match(pattern.replace("/", "_")) if line.strip() else False


def test_the_seed_matrix_is_collected_in_order() -> None:
    words = ["-m", "pressure", "--collect-only", "-q", "scenarios", "-p", "no:cacheprovider"]

    out = subprocess.run(
        [sys.executable, "-m", "pytest", *words], capture_output=True, text=True, check=True
    ).stdout

    items = [line for line in out.splitlines() if "::" in line]
    assert items[0] == "scenarios/seed.yaml::lora-fp16"
    assert items[-1] == "scenarios/seed.yaml::gptq"
    assert len(items) == 11


def test_the_plugin_imports_nothing_heavy_when_loaded() -> None:
    script = (
        "import sys, harness.plugin\n"
        "heavy = {'torch', 'transformers', 'pydantic', 'yaml', 'rich', 'numpy'}\n"
        "assert not heavy & set(sys.modules)\n"
    )

    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("words", "worker", "expected"),
    [("3", None, ["3"]), ("0,1,2", "gw0", ["0", "2"]), ("0,1,2", "gw1", ["1"])],
)
def test_workers_share_the_gpus_that_were_named(pytestconfig, monkeypatch, words, worker, expected):
    monkeypatch.setattr(pytestconfig.option, "pressure_device", words)
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        monkeypatch.delenv(name, raising=False)
    if worker is not None:
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
        monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "2")

    slots = harness.plugin._gpus(pytestconfig)

    assert slots is not None
    assert slots.names == expected


def test_a_device_that_is_no_number_is_refused_with_its_option(project: pytest.Pytester) -> None:
    result = run(project, "--pressure-device", "cuda:0")

    assert result.ret != 0
    result.stdout.fnmatch_lines(["*--pressure-device cuda:0: expected different numbers*"])


def test_on_the_cpu_no_gpu_is_shown_to_a_cell(project: pytest.Pytester, monkeypatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "0")
    run(project, "--pressure-device", "cpu", "-k", "pass-one")

    assert os.environ["CUDA_VISIBLE_DEVICES"] == os.environ["HIP_VISIBLE_DEVICES"] == "-1"
