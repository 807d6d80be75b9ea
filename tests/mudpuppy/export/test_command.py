import subprocess
import sys
from pathlib import Path

import pytest

from mudpuppy.cli import main
from mudpuppy.tiny import resolve_model


def test_the_command_writes_a_file_and_says_how_to_check_and_serve_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "out.gguf"

    code = main(["export", "gguf", "tiny:llama", str(output), "--quant", "q8_0"])

    said = capsys.readouterr().out
    assert code == 0
    assert output.read_bytes()[:4] == b"GGUF"
    assert f"mudpuppy-doctor {output}" in said
    assert "how to serve it" in said


def test_without_notes_nothing_lies_beside_the_file(tmp_path: Path):
    words = ["export", "gguf", "tiny:llama", str(tmp_path / "out.gguf"), "--quant", "f16"]

    assert main([*words, "--no-notes"]) == 0
    assert ["out.gguf"] == [path.name for path in tmp_path.iterdir()]


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


def test_an_export_of_a_usual_model_imports_no_torch(tmp_path: Path):
    model = resolve_model("tiny:llama")
    words = ["export", "gguf", model, str(tmp_path / "out.gguf"), "--quant", "q8_0"]
    code = (
        "import sys; from mudpuppy.cli import main\n"
        f"assert main({words!r}) == 0 and 'torch' not in sys.modules"
    )

    subprocess.run([sys.executable, "-c", code], check=True)  # it takes longer than all else


def test_help_has_examples(capsys: pytest.CaptureFixture[str]):
    for words in (["export", "--help"], ["export", "gguf", "--help"]):
        with pytest.raises(SystemExit):
            main(words)
        assert "mud-puppy export gguf ./merged model.gguf" in capsys.readouterr().out


def test_a_model_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["export", "gguf", str(tmp_path / "none"), str(tmp_path / "out.gguf")]) == 2
    assert "does not exist" in capsys.readouterr().err
