import pytest

from mudpuppy.errors import EngineError
from mudpuppy.export.gguf.whole_file import WholeFile


@pytest.fixture
def program(tmp_path):
    def write(script):
        path = tmp_path / "llama-quantize"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return WholeFile(path, threads=3)

    return write


@pytest.fixture
def files(tmp_path):
    source = tmp_path / "source.gguf"
    source.write_bytes(b"GGUF and more")
    return source, tmp_path / "target.gguf"


def test_the_program_is_given_files_type_and_threads(program, files):
    source, target = files

    program('cp "$1" "$2"; echo "$3 $4" > "$2.said"')(source, target, "q4_k_m")

    assert target.read_bytes() == source.read_bytes()
    assert target.with_name("target.gguf.said").read_text() == "Q4_K_M 3\n"


def test_a_failure_is_told_with_its_last_lines_and_leaves_nothing(program, files):
    source, target = files

    with pytest.raises(EngineError, match=r"(?s)ended with 1\n.*\nmain: failed") as caught:
        program(
            'echo x > "$2"; for n in 1 2 3 4 5 6 7 8 9; do echo line $n; done; '
            "echo main: failed to quantize; exit 1"
        )(source, target, "q6_k")
    assert "line 1\n" not in str(caught.value)
    assert not target.exists()


def test_a_file_that_is_no_gguf_is_a_failure(program, files):
    source, target = files

    with pytest.raises(EngineError, match="ended with 0"):
        program('echo nonsense > "$2"')(source, target, "q6_k")
    assert not target.exists()
