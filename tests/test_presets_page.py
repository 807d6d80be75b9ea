"""docs/presets.md says what `estimate` says, and no preset promises what that contradicts."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from mudpuppy.estimate.advice import HEADROOM
from mudpuppy.presets.loader import load_presets, load_shapes

ROOT = Path(__file__).parents[1]
HINT = "run: python docs/presets.py --predict"


@pytest.fixture(scope="module")
def pages():
    spec = importlib.util.spec_from_file_location("presets_page", ROOT / "docs/presets.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def kept(pages):
    return json.loads(pages.KEPT.read_text(encoding="utf-8"))


def test_the_page_is_what_the_predictions_say(pages, kept):
    assert pages.page(kept) == pages.PAGE.read_text("utf-8"), HINT


def test_what_is_kept_was_predicted_for_the_presets_as_they_are(pages, kept):
    shapes = load_shapes()
    wanted = {n: (shapes[shape], settings) for n, (shape, settings) in pages.wanted().items()}

    assert {n: (one["shape"], one["settings"]) for n, one in kept.items()} == wanted, HINT


@pytest.mark.parametrize("name", load_presets())
def test_no_preset_promises_memory_that_estimate_contradicts(name, kept):
    assert kept[name]["device"] <= HEADROOM * load_presets()[name].memory * 2**30


def _predict(pages, kept, name):
    one = kept[name]
    predicted = pages.predict(one["shape"], one["settings"])
    assert {"device": one["device"], "host": one["host"]} == predicted, HINT


@pytest.mark.parametrize("name", ["lora-1b-8gb"])
def test_a_small_one_is_still_predicted_so(name, pages, kept):
    _predict(pages, kept, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora-14b-16gb", "lora-7b-8gb", "lora-14b-12gb"])
def test_the_guides_are_still_predicted_so(name, pages, kept):
    _predict(pages, kept, name)


def test_the_command_itself_says_that_the_recommended_preset_fits(tmp_path, capsys, kept):
    from mudpuppy.cli import main

    shape = load_shapes()[load_presets()["temporal-dev"].shape]
    (tmp_path / "config.json").write_text(json.dumps(shape))
    words = ["estimate", str(tmp_path), "--preset", "temporal-dev", "--format", "json"]
    assert 0 == main([*words, "--memory", "16GB"])
    made = json.loads(capsys.readouterr().out)
    assert made["fits"]
    assert made["device_bytes"] == kept["temporal-dev"]["device"]


def test_every_row_of_the_guide_is_checked_and_none_holds_in_fp16(pages, kept):
    for row in pages.GUIDE:
        figures = {m: kept[pages._row_name(row, m)]["device"] for m in ("lora", "qlora")}
        assert figures["lora"] > row.memory * 2**30, row  # what the page says of all of them
        assert figures["qlora"] < figures["lora"]
