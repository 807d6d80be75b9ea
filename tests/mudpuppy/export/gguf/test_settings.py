import json
from pathlib import Path

import pytest

from mudpuppy.export.gguf.refusals import ExportRefused
from mudpuppy.export.gguf.settings import read_settings
from tests.mudpuppy.export.gguf.models import edit_config, make_model


def refusal(folder: Path) -> ExportRefused:
    with pytest.raises(ExportRefused) as caught:
        read_settings(folder)
    return caught.value


def test_an_adapter_is_refused_with_the_line_that_merges_it(tmp_path: Path):
    folder = tmp_path / "pond"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen2.5-0.5B"}')

    error = refusal(folder)

    assert error.code == "MP-X04"
    assert error.hint == f"mud-puppy merge Qwen/Qwen2.5-0.5B {folder} {tmp_path / 'pond-merged'}"


def test_packed_weights_are_refused(tmp_path: Path):
    folder = make_model(tmp_path, "llama")
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})

    error = refusal(folder)

    assert error.code == "MP-X04"
    assert "gptq" in str(error)
    assert "mud-puppy merge" in error.hint


@pytest.mark.parametrize("text", ["", "[]", "{", '{"model_type": "llama", "hidden_size": "wide"}'])
def test_a_config_that_nobody_can_read_is_refused(text: str, tmp_path: Path):
    (tmp_path / "config.json").write_text(text)

    assert refusal(tmp_path).code == "MP-X03"


def test_a_folder_without_a_model_is_refused(tmp_path: Path):
    assert refusal(tmp_path).code == "MP-X04"


def test_old_settings_of_the_rotation_come_out_as_todays(tmp_path: Path):
    from mudpuppy.export.gguf.architectures.family import main_rotation

    folder = make_model(tmp_path, "llama3")
    today = main_rotation(read_settings(folder))
    rope = json.loads((folder / "config.json").read_text())["rope_parameters"]
    theta = rope.pop("rope_theta")
    edit_config(folder, rope_parameters=None, rope_theta=theta, rope_scaling=rope)

    assert main_rotation(read_settings(folder)) == today
