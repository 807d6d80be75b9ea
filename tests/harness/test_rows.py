"""Products by the names of the rule table, included settings, covering arrays, inherited files."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.axes import settings_for
from harness.matrix import Cell, load_cells
from mudpuppy.errors import ConfigError
from mudpuppy.features import FEATURES as EVERY_FEATURE
from mudpuppy.features import METHODS, PRECISIONS

HEAD = "schema_version: 1\nname: small\ndefaults: {model: tiny, dataset: data.jsonl}\n"
FEATURES = "axes:\n  method: [lora, full]\n  feature: [none, packing, packing+dora]\n"
PAIRS = "covering:\n  method: [lora]\n  precision: [bf16]\n  feature: [packing, dora, compile]\n"


def cells_of(folder: Path, text: str, name: str = "small.yaml") -> dict[str, Cell]:
    (folder / name).write_text(text if text.startswith("schema") else HEAD + text)
    return {cell.name: cell for cell in load_cells(folder / name)}


def problems_of(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        cells_of(folder, text)
    return [problem.replace(f"{folder}/", "") for problem in caught.value.problems]


def test_a_feature_of_an_axis_switches_its_settings_on(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, FEATURES)

    assert [*cells] == [
        "lora", "lora-packing", "lora-packing-dora", "full", "full-packing", "full-packing-dora",
    ]  # fmt: skip
    assert set() == cells["lora"].features
    assert {"packing", "dora"} == cells["lora-packing-dora"].features
    assert "lora + packing + dora" == cells["lora-packing-dora"].title
    assert "MP-R10" == cells["full-packing-dora"].expect.code


def test_all_stands_for_the_whole_table(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, "axes: {method: all, precision: all, feature: all}\ninclude:\n"
                     "  - {method: grpo, reward_funcs: [length]}\n")  # fmt: skip

    assert len(METHODS) * len(PRECISIONS) * (1 + len(EVERY_FEATURE)) == len(cells) == 1716
    assert cells["kto-fp8-no-evaluation"].config["eval_fraction"] == 0.0


def test_a_value_that_no_feature_is_called_is_named_with_its_line(tmp_path: Path) -> None:
    assert problems_of(tmp_path, "axes:\n  feature:\n    - none\n    - pakking\n") == [
        "small.yaml:7: axis 'feature': there is no feature 'pakking'; did you mean 'packing'?"
    ]


def test_all_is_a_value_like_any_other_for_an_axis_without_a_table(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, "axes: {lora_r: all}\n")

    assert "small.yaml:4: axes.lora_r: Input should be a valid list, got 'all'" == problem


def test_included_settings_go_to_the_rows_that_are_named(tmp_path: Path) -> None:
    text = FEATURES + (
        "include:\n"
        "  - {method: full, learning_rate: 1e-4}\n"
        "  - {method: [lora, full], feature: packing, seed: 3}\n"
        "  - {feature: dora, lora_r: 4}\n"
    )
    cells = cells_of(tmp_path, text)

    rates = {name: cell.config["learning_rate"] for name, cell in cells.items()}
    assert {None} == {rates[name] for name in rates if name.startswith("lora")}
    assert {1e-4} == {rates[name] for name in rates if name.startswith("full")}
    assert 4 * [3] == [c.config["seed"] for c in cells.values() if "packing" in c.features]
    assert 2 * [42] == [c.config["seed"] for c in cells.values() if "packing" not in c.features]
    assert {"lora-packing-dora", "full-packing-dora"} == {
        name for name, cell in cells.items() if cell.config["lora_r"] == 4
    }


def test_included_settings_give_way_to_those_of_a_scenario_and_of_an_axis(tmp_path: Path) -> None:
    text = (
        "include: [{method: lora, seed: 3, lora_alpha: 4}]\n"
        "scenarios:\n"
        "  - {name: by-itself, config: {seed: 5}}\n"
        "  - {name: many, axes: {batch_size: [2]}, config: {lora_alpha: 9}}\n"
        "  - {name: other, config: {method: full}}\n"
    )
    cells = cells_of(tmp_path, text)

    found = {name: (c.config["seed"], c.config["lora_alpha"]) for name, c in cells.items()}
    assert {"by-itself": (5, 4), "many-batch-size-2": (3, 9), "other": (42, None)} == found


def test_an_include_never_changes_the_value_of_an_axis(tmp_path: Path) -> None:
    text = "axes: {lora_r: [4, 8]}\ninclude: [{lora_r: 8, seed: 3}]\n"

    cells = cells_of(tmp_path, text)

    assert {"lora-r-4": 42, "lora-r-8": 3} == {n: c.config["seed"] for n, c in cells.items()}


def test_an_include_that_adds_to_nothing_is_an_error(tmp_path: Path) -> None:
    assert problems_of(tmp_path, FEATURES + "include: [{method: gptq, seed: 1}]\n") == [
        "small.yaml:7: this include adds to nothing: no cell has method=gptq, seed=1",
    ]


def test_an_include_that_switches_a_feature_on_in_silence_is_an_error(tmp_path: Path) -> None:
    found = problems_of(tmp_path, FEATURES + "include: [{method: full, stream: true}]\n")

    assert 3 == len(found)
    assert (
        "small.yaml:4: cell 'full': its defaults or includes change what is on beside the axis "
        "'feature': streaming"
    ) == found[0]


def test_an_exclude_may_be_about_features_and_about_several_values(tmp_path: Path) -> None:
    text = FEATURES + "exclude:\n  - {method: [lora, full], feature: dora}\n"

    assert ["lora", "lora-packing", "full", "full-packing"] == [*cells_of(tmp_path, text)]


def test_a_covering_array_holds_accepted_rows_by_their_settings(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, PAIRS)

    assert {"trained"} == {cell.expect.outcome for cell in cells.values()}
    assert "lora-bf16-mix-01" in cells
    for cell in cells.values():
        wanted = settings_for("lora", "bf16", cell.features)
        assert wanted == {key: cell.config[key] for key in wanted}
    assert {"packing", "dora"} in [cell.features for cell in cells.values()]
    assert not [c for c in cells.values() if {"packing", "compile"} <= c.features]  # MP-R23


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("covering: {feature: [pack]}\n", "'pack' is no feature of the rule table"),
        ("covering: {method: [sft]}\n", "'sft' is no method of the rule table"),
        ("covering: {apart: [compiler]}\n", "did you mean 'compile'"),
        ("covering: {strength: 9}\n", "covering.strength"),
        ("covering: {strenght: 2}\n", "did you mean 'strength'"),
    ],
)
def test_a_covering_array_of_what_does_not_exist_is_refused(
    tmp_path: Path, text: str, problem: str
) -> None:
    (found,) = problems_of(tmp_path, text)

    assert found.startswith("small.yaml:4: ")
    assert problem in found


def test_a_file_takes_over_what_another_says_of_every_cell(tmp_path: Path) -> None:
    cells_of(tmp_path, FEATURES + "include: [{method: lora, seed: 3}]\ntimeout_s: 9\n", "base.yaml")
    text = (
        "schema_version: 1\nname: small\nextends: base.yaml\ndefaults: {dataset: own.jsonl}\n"
        "include: [{method: full, seed: 4}]\n"
        "scenarios:\n  - {name: one}\n  - {name: two, config: {method: full}}\n"
    )
    cells = cells_of(tmp_path, text)

    assert {"one": 3, "two": 4} == {name: cell.config["seed"] for name, cell in cells.items()}
    assert ("tiny", str(tmp_path / "own.jsonl"), 9) == (
        cells["one"].config["model"], cells["one"].config["dataset"], cells["one"].timeout_s,
    )  # fmt: skip


def test_an_inherited_include_may_be_idle_and_a_file_of_ones_own_may_not(tmp_path: Path) -> None:
    cells_of(tmp_path, FEATURES + "include: [{method: lora, seed: 3}]\n", "base.yaml")
    head = "schema_version: 1\nname: small\nextends: base.yaml\n"
    tail = "scenarios: [{name: two, config: {method: full}}]\n"

    assert ["two"] == [*cells_of(tmp_path, head + tail)]
    assert [
        "small.yaml:4: this include adds to nothing: no cell has method=qat, seed=1"
    ] == problems_of(tmp_path, head + "include: [{method: qat, seed: 1}]\n" + tail)


@pytest.mark.parametrize(
    ("name", "problem"),
    [("bas.yaml", "did you mean 'base.yaml'"), ("small.yaml", "extends a file itself")],
)
def test_a_file_that_cannot_be_extended_is_named(tmp_path: Path, name: str, problem: str) -> None:
    cells_of(tmp_path, FEATURES, "base.yaml")
    text = f"schema_version: 1\nname: small\nextends: {name}\nscenarios: [{{name: one}}]\n"

    (found,) = problems_of(tmp_path, text)

    assert found.startswith("small.yaml:3: ")
    assert problem in found
