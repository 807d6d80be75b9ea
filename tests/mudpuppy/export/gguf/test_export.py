from pathlib import Path

import pytest

from mudpuppy.errors import EngineError, OutputError, UsageError
from mudpuppy.export.gguf import export_gguf
from mudpuppy.export.gguf.export import check_output
from mudpuppy.export.gguf.general import PROVENANCE_KEY
from mudpuppy.tiny import resolve_model
from tests.mudpuppy.export.gguf.reading import read_metadata, read_tensors

FAMILIES = ("llama", "llama-tied", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "mistral")


@pytest.mark.parametrize("family", [*FAMILIES, "mixtral"])
def test_the_doctor_finds_a_written_file_healthy(family: str, tmp_path: Path):
    from reports.commands.doctor import main

    report = export_gguf(Path(resolve_model(f"tiny:{family}")), tmp_path / "out.gguf", quant="q8_0")

    assert report.output == tmp_path / "out.gguf"
    assert report.tensors == len(read_tensors(report.output)) == sum(report.types.values())
    assert report.bytes == report.output.stat().st_size
    assert PROVENANCE_KEY in read_metadata(report.output)
    assert main([str(report.output)]) == 0


def test_a_second_export_is_the_first_byte_for_byte(tmp_path: Path):
    model = Path(resolve_model("tiny:llama"))

    first = export_gguf(model, tmp_path / "a.gguf", quant="q8_0").output.read_bytes()

    assert export_gguf(model, tmp_path / "b.gguf", quant="q8_0").output.read_bytes() == first


def test_an_unknown_type_is_refused_with_the_near_one(tmp_path: Path):
    with pytest.raises(UsageError, match="did you mean 'q4_k_m'"):
        export_gguf(tmp_path, tmp_path / "out.gguf", quant="Q4_KM")


def test_without_the_gguf_package_the_line_that_installs_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("mudpuppy.export.gguf.export.find_spec", lambda _: None)

    with pytest.raises(UsageError, match=r"pip install 'mudpuppy\[gguf\]'"):
        export_gguf(tmp_path, tmp_path / "out.gguf")


def test_a_folder_gets_a_file_named_after_model_and_type(tmp_path: Path):
    found = check_output(Path("/models/pond"), tmp_path, "q4_k_m", overwrite=False)

    assert found == tmp_path / "pond-Q4_K_M.gguf"


@pytest.mark.parametrize(
    ("name", "content", "overwrite", "said"),
    [
        ("out.bin", None, False, "does not end in .gguf"),
        ("none/out.gguf", None, False, "does not exist"),
        ("out.gguf", b"GGUF....", False, "--overwrite"),
        ("out.gguf", b"a diary", True, "no GGUF file"),
    ],
)
def test_a_file_that_may_not_be_written_is_refused(
    name: str, content: bytes | None, overwrite: bool, said: str, tmp_path: Path
):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(OutputError, match=said):
        check_output(tmp_path, path, "f16", overwrite=overwrite)


def test_a_file_of_that_name_is_replaced_when_asked(tmp_path: Path):
    path = tmp_path / "out.gguf"
    path.write_bytes(b"GGUF....")

    export_gguf(Path(resolve_model("tiny:llama")), path, quant="f16", overwrite=True)

    assert read_tensors(path)


def program(folder: Path, script: str) -> Path:
    """Write a llama-quantize of our own."""
    path = folder / "bin" / "llama-quantize"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\n[ "$1" = --help ] && echo Q4_K_M && exit\n{script}\n')
    path.chmod(0o755)
    return folder


def test_where_only_a_program_quantises_it_gets_a_file_that_lost_nothing(tmp_path: Path):
    # it says what it was called with, and hands its input on
    found = program(tmp_path, f'echo "$@" > {tmp_path}/said; cp "$1" "$2"')
    output = tmp_path / "out" / "out.gguf"
    output.parent.mkdir()
    model = Path(resolve_model("tiny:llama"))

    report = export_gguf(model, output, quant="q4_k_m", llama_cpp=found)

    plain = export_gguf(model, tmp_path / "plain.gguf", quant="f32").output
    assert (tmp_path / "said").read_text().split()[2] == "Q4_K_M"
    assert "llama-quantize" in report.quantiser
    assert [output] == list(output.parent.iterdir())
    assert read_tensors(output) == read_tensors(plain)


def test_a_program_that_fails_leaves_nothing(tmp_path: Path):
    found = program(tmp_path, 'echo "no more pond"; exit 3')
    output = tmp_path / "out" / "out.gguf"
    output.parent.mkdir()

    with pytest.raises(EngineError, match="no more pond"):
        export_gguf(Path(resolve_model("tiny:llama")), output, quant="q4_k_m", llama_cpp=found)
    assert [] == list(output.parent.iterdir())
