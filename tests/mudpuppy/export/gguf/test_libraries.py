import sys

import pytest

from mudpuppy.errors import UsageError
from mudpuppy.export.gguf.libraries import find_candidates


def make(path, *, is_program=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" if is_program else "")
    path.chmod(0o755)
    return path


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Nothing but what the test puts there."""
    site, programs = tmp_path / "site", tmp_path / "programs"
    site.mkdir()
    programs.mkdir()
    monkeypatch.setattr(sys, "path", [str(site)])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    monkeypatch.delitem(sys.modules, "xllamacpp", raising=False)
    monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)
    monkeypatch.setenv("PATH", str(programs))
    return site, programs


def test_what_is_installed_is_found_in_order_and_not_imported(installed):
    site, programs = installed
    make(site / "xllamacpp/__init__.py").write_text("raise SystemExit('imported')")
    make(site / "llama_cpp/__init__.py").write_text("raise SystemExit('imported')")
    first = make(site / "xllamacpp/xllamacpp.abi3.so")
    second = make(site / "llama_cpp/lib/libggml-base.so")
    make(site / "llama_cpp/lib/libggml-cpu.so")
    third = make(programs / "llama-quantize", is_program=True)

    found = find_candidates(None)

    assert [one.path for one in found] == [first, second, third]
    assert [one.name for one in found] == ["xllamacpp", "llama-cpp-python", "llama-quantize"]
    assert [one.is_library for one in found] == [True, True, False]


def test_nothing_installed_is_an_empty_list(installed):
    assert find_candidates(None) == []


def test_a_named_place_is_the_only_one(installed, tmp_path):
    site, programs = installed
    make(site / "xllamacpp/__init__.py")
    make(site / "xllamacpp/xllamacpp.abi3.so")
    make(programs / "llama-quantize", is_program=True)
    library = make(tmp_path / "llama.cpp/build/bin/libggml-base.so")
    program = make(tmp_path / "llama.cpp/build/bin/llama-quantize", is_program=True)

    found = find_candidates(tmp_path / "llama.cpp")

    assert [one.path for one in found] == [library, program]
    assert [one.path for one in find_candidates(program)] == [program]
    assert [one.is_library for one in find_candidates(library)] == [True]


def test_a_place_without_anything_is_told_with_how_to_build(tmp_path):
    with pytest.raises(UsageError, match=r"no libggml-base\.so and no llama-quantize") as caught:
        find_candidates(tmp_path)
    assert "cmake" in caught.value.hint


def test_a_place_that_is_not_there_is_told(tmp_path):
    with pytest.raises(UsageError, match="there is no such file or folder"):
        find_candidates(tmp_path / "nowhere")
