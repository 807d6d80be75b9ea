"""One reading of `quantization_config`: where it is looked for, and what is refused."""

import json

import pytest

from mudpuppy.adapters.merge_inputs import _unpacked
from mudpuppy.errors import ModelError
from mudpuppy.quant.checks import QuantisedModelError
from mudpuppy.quant.declared import find_declared, read_folder, read_settings, require_readable
from mudpuppy.quant.gptq_read import open_gptq, refuse_as_base
from mudpuppy.quant.int8 import load_int8
from mudpuppy.quant.opening import read_base

SAID = {"quant_method": "gptq", "bits": 4}


@pytest.mark.parametrize(
    "settings",
    [
        {"quantization_config": SAID},
        {"text_config": {"quantization_config": SAID}},
        {"quantization_config": None, "text_config": {"quantization_config": SAID}},
        {"quantization_config": SAID, "text_config": {"quantization_config": {"bits": 8}}},
    ],
)
def test_it_is_found_in_both_places(settings, tmp_path):
    assert find_declared(tmp_path, settings) == SAID


@pytest.mark.parametrize(
    "settings",
    [{}, {"quantization_config": None}, {"quantization_config": {}}, {"text_config": ["x"]}],
)
def test_a_plain_model_declares_nothing(settings, tmp_path):
    assert find_declared(tmp_path, settings) == {}


HOSTILE = ([], [1], "gptq", "", 0, 4, True, False, {"quant_method": ["gptq"]}, {"quant_method": 4})


@pytest.mark.parametrize("in_text", [False, True], ids=["whole", "text part"])
@pytest.mark.parametrize("declared", HOSTILE, ids=repr)
def test_every_reader_refuses_other_types_alike(declared, in_text, tmp_path):
    settings = {"quantization_config": declared}
    settings = {"text_config": settings} if in_text else settings
    (tmp_path / "config.json").write_text(json.dumps(settings))
    readers = (read_folder, read_base, open_gptq, refuse_as_base, load_int8)
    for reader in (*readers, lambda folder: _unpacked(folder, read_settings(folder), {})):
        with pytest.raises(QuantisedModelError, match=r"config\.json: ") as caught:
            reader(tmp_path)
        assert caught.value.code == "MP-Q01"


def test_what_no_reader_takes_is_told_before_the_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text('{"quantization_config": [1]}')
    with pytest.raises(
        QuantisedModelError, match=r"config\.json: quantization_config is no object"
    ):
        require_readable(tmp_path)
    (tmp_path / "config.json").write_text("{")
    require_readable(tmp_path)  # that is told by who opens it


@pytest.mark.parametrize("text", ["", "[]", "nul", "[" * 100_000, "\x00"])
def test_a_config_that_is_none_is_told(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    for reader in (read_settings, read_folder, read_base, open_gptq, refuse_as_base, load_int8):
        with pytest.raises(ModelError, match=r"config\.json (cannot be read|is no object)"):
            reader(tmp_path)


def test_a_folder_without_a_config_declares_nothing(tmp_path):
    assert read_folder(tmp_path) == {}
    with pytest.raises(ModelError, match=r"config\.json cannot be read: No such file"):
        read_settings(tmp_path)
