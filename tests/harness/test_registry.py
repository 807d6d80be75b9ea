"""Probes of other packages run with our own, and one that is broken is named and stops nothing."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from harness import registry
from harness.doctor import diagnose
from harness.doctor.explain import find_probes
from harness.findings import Severity, Status, Verdict
from harness.registry import load_own_probes, load_probes
from reports.diagnosis_console import write_console
from reports.diagnosis_summary import area_of
from tests.harness.checkpoints import save_base

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/doctor.md").read_text(encoding="utf-8")
EXAMPLE = PAGE.partition("## Probes of other packages")[2]


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", EXAMPLE, re.DOTALL)
    assert found
    return found[1]


PROJECT = tomllib.loads(block("toml"))["project"]
((NAME, MODULE),) = PROJECT["entry-points"]["mudpuppy.probes"].items()


def install(site: Path, source: str, *, name: str = NAME, module: str = MODULE) -> None:
    """Lay a package out as pip does."""
    package, _, file = module.partition(".")
    (site / package).mkdir(parents=True)
    (site / package / "__init__.py").write_text("")
    (site / package / f"{file}.py").write_text(source)
    info = site / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mudpuppy.probes]\n{name} = {module}\n")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("registry") / "base")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder in which packages are found, and nothing of which is left behind."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    load_probes.cache_clear()
    yield tmp_path / "site"
    load_probes.cache_clear()
    for name in [one for one in sys.modules if one.partition(".")[0] in ("acme_probes", "worse")]:
        del sys.modules[name]


def test_without_plugins_there_are_our_own_probes_alone():
    load_probes.cache_clear()

    assert load_probes() == load_own_probes()


@pytest.mark.parametrize("one", load_own_probes(), ids=lambda one: one.name)
def test_a_probe_that_was_only_read_is_the_one_that_is_imported(one):
    made = vars(importlib.import_module(one.module))["PROBE"]

    assert replace(one, check=made.check) == made


def test_to_list_probes_imports_none_of_them():
    code = (
        "import sys\nfrom harness.registry import load_probes\n"
        "assert len(load_probes()) > 200\n"
        "found = [name for name in sys.modules if name.startswith('harness.probes')]\n"
        "assert not found, found\n"
        "assert 'importlib.metadata' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "text",
    ["", "def check(files: Files) -> Finding | str:\n    return 'x'\n", "# @probe('MPD101')\n"],
)
def test_a_file_without_a_probe_is_an_error(text):
    with pytest.raises(ValueError, match=r"harness\.probes\.new registers no probe"):
        registry._read_probe(text, "harness.probes.new")


PROBE = '@probe("{code}", modes=("FM01",), severity=Severity.{severity})\n{between}'
CHECK = "def check(files: Files) -> Finding | str:\n    return 'fine'\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "registers no probe"),
        (PROBE.format(code="MPD002", severity="HIGH", between="@cache\n") + CHECK, "registers no"),
        (PROBE.format(code="MPD001", severity="HIGH", between="") + CHECK, "MPD001 is both"),
        (PROBE.format(code="MPD002", severity="WORST", between="") + CHECK, "WORST"),
        ("\udcff", "UnicodeDecodeError"),
    ],
)
def test_one_odd_file_is_a_probe_that_crashes_and_the_others_go_on(text, why, tmp_path):
    good = PROBE.format(code="MPD001", severity="HIGH", between="") + CHECK
    (tmp_path / "fine_one.py").write_text(good)
    (tmp_path / "odd_one.py").write_bytes(text.encode("utf-8", "surrogateescape"))
    odd, fine = registry.read_probes(tmp_path, "harness.probes")
    assert (fine.code, fine.name) == ("MPD001", "fine-one")
    assert (odd.code, odd.name) == ("BROKEN002", "odd-one")
    result = registry.run_probe(odd, source=None)
    assert result.status is Status.CRASHED
    assert "odd_one.py" in result.reason
    assert why in result.reason


def test_none_of_our_own_files_is_odd():
    assert not [one.name for one in load_own_probes() if not one.code.startswith("MPD")]


def test_a_plugin_in_an_archive_is_found(tmp_path, monkeypatch):
    archive = tmp_path / "acme.whl"
    with zipfile.ZipFile(archive, "w") as handle:
        handle.writestr("acme_probes/__init__.py", "")
        handle.writestr("acme_probes/licence.py", block("python"))
        handle.writestr("acme-1.0.dist-info/METADATA", "Name: acme\nVersion: 1.0\n")
        handle.writestr(
            "acme-1.0.dist-info/entry_points.txt", f"[mudpuppy.probes]\n{NAME} = {MODULE}\n"
        )
    monkeypatch.setattr(sys, "path", [str(archive)])
    assert [one.value for one in registry._list_plugins()] == [MODULE]


def test_the_probe_of_the_documentation_runs_when_it_is_installed(site, base, tmp_path):
    install(site, block("python"))

    diagnosis = diagnose(base)
    (finding,) = diagnosis.findings
    assert (finding.code, finding.name) == ("ACME101", "licence-missing")
    assert finding.severity is Severity.MEDIUM
    assert diagnosis.verdict is Verdict.SICK
    assert "ACME101" in write_console(diagnosis)
    assert [one.code for one in find_probes("acme101")] == ["ACME101"]
    assert area_of("ACME101") == area_of("ACM101") == "other"
    assert diagnose(base, ignore=["ACME"]).verdict is Verdict.HEALTHY

    (base / "LICENSE").write_text("take it")
    try:
        (passed,) = diagnose(base, select=["licence-missing"]).probes
    finally:
        (base / "LICENSE").unlink()
    assert passed.status is Status.PASSED


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import no_such_package", "No module named 'no_such_package'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def check(): (", "SyntaxError"),
        ("PROBE = 3", "registers no probe"),
        (block("python").replace("ACME101", "MPD101"), "letters, other than MPD, and three digits"),
        (block("python").replace("ACME101", "ACME"), "letters, other than MPD, and three digits"),
    ],
)
def test_a_broken_plugin_is_named_and_the_others_go_on(site, base, source, why):
    install(site, block("python"))
    install(site, source, name="Worse Probe", module="worse.probe")

    diagnosis = diagnose(base)
    (crashed,) = [one for one in diagnosis.probes if one.status is Status.CRASHED]
    assert crashed.name == "worse-probe"
    assert crashed.reason.startswith("the plugin Worse Probe of worse 1.0 cannot be used: ")
    assert why in crashed.reason
    assert [one.code for one in diagnosis.findings] == ["ACME101"]
    assert find_probes("worse-probe")

    unknown = diagnose(base, ignore=["ACME"])
    assert unknown.verdict is Verdict.UNKNOWN
    assert "worse-probe" in unknown.why
    assert diagnose(base, ignore=["ACME", "worse-probe"]).verdict is Verdict.HEALTHY


def test_two_plugins_with_one_code_are_told_apart(site, base):
    install(site, block("python"))
    install(site, block("python"), name="zebra", module="worse.licence_absent")

    (crashed,) = [one for one in diagnose(base).probes if one.status is Status.CRASHED]
    assert crashed.name == "zebra"
    assert "ACME101 licence-absent is also ACME101 licence-missing" in crashed.reason


def test_what_lies_in_the_current_folder_is_no_plugin(base, tmp_path):
    """With `python -m`, that folder is on the path; it may be a stranger's checkpoint."""
    here, marker = tmp_path / "here", tmp_path / "ran"
    install(here, f"open({str(marker)!r}, 'w')")
    words = [sys.executable, "-m", "reports.commands.doctor", str(base), "--depth", "files"]
    done = subprocess.run(
        words,
        cwd=here,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert not marker.exists()
