"""The schema that editors read: current, and of one mind with the loader about right and wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from mudpuppy.errors import ConfigError
from mudpuppy.yamlfile import read_document
from scenarios.json_schema import scenario_schema
from scenarios.loader import SHIPPED, load_scenarios

CHECKED_IN = Path(__file__).parents[2] / "docs" / "scenario.schema.json"
HEAD = "schema_version: 1\nname: small\n"
ROW = "scenarios: [{name: one}]\n"
WRONG = {
    "a misspelt key": "scenarioz: [{name: one}]\n",
    "a misspelt setting": "defaults: {lora_rr: 4}\n" + ROW,
    "a misspelt setting of a cell": "scenarios: [{name: one, config: {metod: lora}}]\n",
    "a folder of its own": "scenarios: [{name: one, config: {output: out}}]\n",
    "a strange axis": "axes: {ranks: [4]}\n",
    "an axis without values": "axes: {lora_r: []}\n",
    "all of what has no table": "axes: {lora_r: all}\n",
    "a misspelt part of an array": "covering: {strenght: 2}\n",
    "a feature that does not exist": "covering: {feature: [pack]}\n",
    "a code that is none": "scenarios: [{name: one, expect: {outcome: rejected, code: R07}}]\n",
    "a name with a capital": "scenarios: [{name: One}]\n",
    "a strange trial": "trial: error\n" + ROW,
    "no version": ROW,
}


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = scenario_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def problems(validator: Draft202012Validator, text: str) -> list[str]:
    value = read_document(text, "small.yaml").value
    return [error.message for error in validator.iter_errors(value)]


def test_the_schema_that_is_checked_in_is_the_one_of_the_form() -> None:
    checked_in = json.loads(CHECKED_IN.read_text(encoding="utf-8"))

    assert scenario_schema() == checked_in, (
        "run: mudpuppy-pressure schema > docs/scenario.schema.json"
    )


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_file_is_fine(validator: Draft202012Validator, path: Path) -> None:
    assert [] == problems(validator, path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", WRONG)
def test_what_the_loader_refuses_is_underlined(
    validator: Draft202012Validator, tmp_path: Path, case: str
) -> None:
    text = WRONG[case] if case == "no version" else HEAD + WRONG[case]
    (tmp_path / "small.yaml").write_text(text, encoding="utf-8")

    with pytest.raises(ConfigError):
        load_scenarios(tmp_path / "small.yaml")
    assert problems(validator, text)


def test_every_setting_is_described_where_it_may_stand() -> None:
    schema = scenario_schema()["$defs"]

    settings = schema["Settings"]["properties"]
    assert [] == [name for name, form in settings.items() if not form.get("description")]
    assert {*settings, "feature"} == {*schema["Axes"]["properties"]}
    assert {*settings, "feature"} == {*schema["Conditions"]["properties"]}
