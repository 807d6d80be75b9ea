from pathlib import Path

import pytest

from mudpuppy.cli import main


def test_the_command_writes_a_file_and_says_how_to_check_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "out.gguf"

    code = main(["export", "gguf", "tiny:llama", str(output), "--quant", "q8_0"])

    said = capsys.readouterr().out
    assert code == 0
    assert output.read_bytes()[:4] == b"GGUF"
    assert f"mudpuppy-doctor {output}" in said


def test_an_adapter_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "tiny"}')

    code = main(["export", "gguf", str(adapter), str(tmp_path / "out.gguf")])

    assert code == 2
    assert f"mud-puppy merge tiny {adapter}" in capsys.readouterr().err
    assert [adapter] == list(tmp_path.iterdir())


def test_help_has_examples(capsys: pytest.CaptureFixture[str]):
    for words in (["export", "--help"], ["export", "gguf", "--help"]):
        with pytest.raises(SystemExit):
            main(words)
        assert "mud-puppy export gguf ./merged model.gguf" in capsys.readouterr().out


def test_a_model_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["export", "gguf", str(tmp_path / "none"), str(tmp_path / "out.gguf")]) == 2
    assert "does not exist" in capsys.readouterr().err
