"""Pages that are written from the code say what the code says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from harness.doctor.settings import KEYS
from harness.registry import load_probes
from mudpuppy.scoring import load_quiz, load_voice_profile

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
DOCTOR = ROOT / "docs/doctor.md"


def anchors(page):
    """Return what GitHub makes of the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#{1,6} (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_inside_the_project_leads_somewhere(page):
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name}: {link}"


def _example(form):
    found = re.search(rf"^```{form}\n(.*?)^```", DOCTOR.read_text(encoding="utf-8"), re.M | re.S)
    assert found
    return found[1]


def test_the_examples_of_the_doctors_files_can_be_read(tmp_path):
    quiz, voice = tmp_path / "quiz.jsonl", tmp_path / "voice.yaml"
    quiz.write_text(_example("json"))
    voice.write_text(_example("yaml"))
    assert load_quiz(quiz)[0].kind == "fact"
    profile = load_voice_profile(voice)
    assert profile.thresholds["accuracy final"] == 0.8
    assert profile.forbidden


def test_every_setting_and_flag_of_the_doctor_is_told():
    page = DOCTOR.read_text(encoding="utf-8")
    flags = re.findall(r'"(--[a-z-]+)"', (ROOT / "reports/commands/doctor.py").read_text())
    assert len(flags) > 15
    for flag in flags:
        assert flag in page, flag
    for key in KEYS:
        assert re.search(rf"\b{key}\b", _example("toml")), key


def test_the_page_on_the_probes_is_what_they_say():
    spec = importlib.util.spec_from_file_location("probes_page", ROOT / "docs/probes.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    held = (ROOT / "docs/probes.md").read_text(encoding="utf-8")

    assert held == module.page(load_probes()), "run: python docs/probes.py --write"
