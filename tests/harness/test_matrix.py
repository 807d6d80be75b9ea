"""Expansion: the same file gives the same cells, and nothing wrong gets past it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.matrix import Cell, explain_rules, load_cells
from mudpuppy.errors import ConfigError

HEAD = "schema_version: 1\nname: small\ndefaults: {model: tiny, dataset: data.jsonl}\n"
TWO_AXES = "axes:\n  method: [lora, full]\n  stream: [false, true]\n"


def cells_of(folder: Path, text: str, **options: str) -> tuple[Cell, ...]:
    path = folder / "small.yaml"
    path.write_text(HEAD + text, encoding="utf-8")
    return load_cells(path, **options)


def problems_of(folder: Path, text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        cells_of(folder, text)
    return tuple(problem.replace(f"{folder}/", "") for problem in caught.value.problems)


def test_the_product_comes_first_and_the_explicit_rows_after_it(tmp_path: Path) -> None:
    text = TWO_AXES + "scenarios:\n  - {name: extra, config: {method: qlora}}\n"

    names = [(cell.number, cell.name) for cell in cells_of(tmp_path, text)]

    assert names == [
        (1, "lora-no-stream"),
        (2, "lora-stream"),
        (3, "full-no-stream"),
        (4, "full-stream"),
        (5, "extra"),
    ]


def test_without_a_word_from_a_person_the_rule_table_decides(tmp_path: Path) -> None:
    expected = {cell.name: cell.expect for cell in cells_of(tmp_path, TWO_AXES)}

    assert (expected["lora-stream"].outcome, expected["lora-stream"].code) == ("rejected", "MP-R07")
    assert expected["full-stream"].outcome == "trained"


def test_a_person_may_contradict_the_rule_table(tmp_path: Path) -> None:
    text = "scenarios:\n  - {name: bold, config: {stream: true}, expect: {outcome: trained}}\n"

    assert cells_of(tmp_path, text)[0].expect.outcome == "trained"


def test_exclude_leaves_rows_out_of_products_only(tmp_path: Path) -> None:
    row = "scenarios:\n  - {name: kept, config: {method: full, stream: true, seed: 1}}\n"
    text = TWO_AXES + "exclude: [{method: full, stream: true}]\n" + row

    names = [cell.name for cell in cells_of(tmp_path, text)]

    assert names == ["lora-no-stream", "lora-stream", "full-no-stream", "kept"]


def test_an_exclude_that_leaves_nothing_out_is_an_error(tmp_path: Path) -> None:
    assert problems_of(tmp_path, TWO_AXES + "exclude: [{method: gptq}]\n") == (
        "small.yaml:7: this exclude leaves nothing out: no cell has method=gptq",
    )


def test_a_scenario_with_axes_is_the_base_of_a_product(tmp_path: Path) -> None:
    text = (
        "scenarios:\n  - name: ranks\n    title: Ranks\n    axes: {lora_r: [4, 8]}\n"
        "    timeout_s: 9\n"
    )

    cells = cells_of(tmp_path, text)

    assert [(c.name, c.title, c.config["lora_r"], c.timeout_s) for c in cells] == [
        ("ranks-lora-r-4", "Ranks + lora-r-4", 4, 9),
        ("ranks-lora-r-8", "Ranks + lora-r-8", 8, 9),
    ]


def test_wrong_values_are_named_with_line_and_cell(tmp_path: Path) -> None:
    text = (
        "scenarios:\n"
        "  - {name: one, config: {precision: fp4}}\n"
        "  - {name: two, config: {max_steps: 0, lora_r: many}}\n"
    )

    found = problems_of(tmp_path, text)

    assert [problem.split(": ")[:3] for problem in found] == [
        ["small.yaml:5", "cell 'one'", "'precision'"],
        ["small.yaml:6", "cell 'two'", "'max_steps'"],
        ["small.yaml:6", "cell 'two'", "'lora_r'"],
    ]


def test_two_cells_may_share_neither_name_nor_settings(tmp_path: Path) -> None:
    text = (
        "scenarios:\n"
        "  - {name: one}\n"
        "  - {name: one, config: {seed: 1}}\n"
        "  - {name: two, config: {method: lora}}\n"
    )

    assert problems_of(tmp_path, text) == (
        "small.yaml:6: two cells are called 'one' (numbers 1 and 2)",
        "small.yaml:7: cell 'two' has the same settings as 'one'",
    )


def test_paths_are_relative_to_the_file_and_ids_do_not_depend_on_where_it_lies(
    tmp_path: Path,
) -> None:
    text = "scenarios:\n  - {name: one, config: {model: ./models/a}}\n"
    ids = set()
    for place in ("here", "there"):
        folder = tmp_path / place
        (folder / "models" / "a").mkdir(parents=True)
        (cell,) = cells_of(folder, text)
        ids.add(cell.cell_id)

        assert cell.config["dataset"] == str(folder / "data.jsonl")
        assert cell.config["model"] == str(folder / "models" / "a")

    assert len(ids) == 1


def test_the_id_follows_settings_and_expectation_and_not_the_wording(tmp_path: Path) -> None:
    def cell_id(row: str) -> str:
        return cells_of(tmp_path, f"scenarios:\n  - {row}\n")[0].cell_id

    plain = cell_id("{name: a}")

    assert plain == cell_id("{name: b, title: Other words, config: {method: lora}, timeout_s: 5}")
    assert plain != cell_id("{name: a, config: {seed: 1}}")
    assert plain != cell_id("{name: a, expect: {stops_early: true}}")


def test_another_model_makes_other_cells(tmp_path: Path) -> None:
    row = "scenarios:\n  - {name: one}\n"

    (tiny,) = cells_of(tmp_path, row)
    (other,) = cells_of(tmp_path, row, model="some/model")

    assert other.config["model"] == "some/model"
    assert tiny.cell_id != other.cell_id


def test_the_rules_are_explained_for_a_cell(tmp_path: Path) -> None:
    (cell,) = cells_of(tmp_path, "scenarios:\n  - {name: one, config: {stream: true}}\n")

    assert "MP-R07 lora-with-streaming" in explain_rules(cell)


def test_expansion_is_the_same_in_another_process_and_imports_no_torch(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    shutil.copy("scenarios/seed.yaml", tmp_path / "seed.yaml")
    script = (
        "import sys, json; from harness.matrix import load_cells\n"
        "cells = load_cells(sys.argv[1])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
        "print(json.dumps([(c.name, c.cell_id) for c in cells]))\n"
    )

    out = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "seed.yaml")],
        capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"},
    ).stdout  # fmt: skip

    assert [list(pair) for pair in ((c.name, c.cell_id) for c in load_cells("seed"))] == json.loads(
        out
    )
