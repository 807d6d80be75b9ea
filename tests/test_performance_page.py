"""docs/performance.md says what `mud-puppy estimate` says, and names what fits."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
HINT = "run: python docs/performance.py --predict"


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("performance", ROOT / "docs/performance.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def kept(pages: ModuleType) -> dict[str, dict[str, dict[str, int]]]:
    return json.loads(pages.KEPT.read_text(encoding="utf-8"))


def test_the_page_is_what_the_predictions_say(pages: ModuleType, kept):
    assert pages.page(kept) == (ROOT / "docs/performance.md").read_text("utf-8"), HINT
    assert [model.name for model in pages.MODELS] == list(kept)


def test_the_smallest_model_is_still_predicted_so(pages: ModuleType, kept):
    assert pages.predict_model(pages.MODELS[0]) == kept[pages.MODELS[0].name], HINT


@pytest.mark.slow
def test_every_model_is_still_predicted_so(pages: ModuleType, kept):
    assert {model.name: pages.predict_model(model) for model in pages.MODELS} == kept, HINT


def test_what_is_named_for_a_card_fits_and_the_next_model_does_not(pages: ModuleType, kept):
    for line, (memory, _) in zip([*pages._short(kept, 0.9)][2:], pages.GPUS, strict=True):
        named = line.strip("| ").split(" | ")[2:]
        for name, method in zip(named, ("full", "lora", "qlora"), strict=True):
            fits = [kept[model][method]["device"] <= 0.9 * memory * 2**30 for model in kept]
            assert fits == sorted(fits, reverse=True), "a larger model takes more"
            assert name == ([*kept][sum(fits) - 1] if any(fits) else "-")


def test_the_gentlest_method_that_fits_is_named(pages: ModuleType):
    room = {
        "1B": {"lora": {"device": 30 * 2**30, "host": 0}, "qlora": {"device": 2**30, "host": 0}}
    }
    lines = list(pages._table(room, ("lora", "qlora"), 0.9))

    assert "| 8 GB | `qlora` |" in lines
    assert "| 48 GB | `lora` |" in lines


def test_host_memory_is_told_beside_a_method_and_nothing_fits_is_a_dash(pages: ModuleType):
    room = {"1B": {"full --stream": {"device": 60 * 2**30, "host": 100 * 2**30}}}
    lines = list(pages._table(room, ("full --stream",), 0.9))

    assert "| 24 GB | - |" in lines
    assert "| 80 GB | `--stream` 100 |" in lines
