"""Pages that are written from the code say what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from harness.registry import load_probes

ROOT = Path(__file__).parents[1]


def test_the_page_on_the_probes_is_what_they_say():
    spec = importlib.util.spec_from_file_location("probes_page", ROOT / "docs/probes.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    held = (ROOT / "docs/probes.md").read_text(encoding="utf-8")

    assert held == module.page(load_probes()), "run: python docs/probes.py --write"
