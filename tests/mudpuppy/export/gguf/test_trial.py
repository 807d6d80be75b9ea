"""Libraries that misbehave are compiled here, since that is what the trial is for."""

import shutil
import subprocess

import pytest

from mudpuppy.export.gguf import libraries, trial
from mudpuppy.export.gguf.ggml import Ggml, Unusable
from mudpuppy.export.gguf.quantise import type_form

COMPILER = shutil.which("cc")
FORMS = {"Q4_K": type_form("Q4_K")}
SOURCE = """
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <stdlib.h>
#include <unistd.h>
const char * ggml_type_name(int type) { return type == 12 ? "%(name)s" : "x"; }
size_t ggml_row_size(int type, int64_t n) { return n / 256 * %(bytes)s; }
bool ggml_validate_row_data(int type, const void * data, size_t size) { return true; }
size_t ggml_quantize_chunk(int type, const float * src, void * dst, int64_t start, int64_t rows,
                           int64_t columns, const float * weights) {
    %(body)s
    memset(dst, 0, rows * columns / 256 * 144);
    return rows * columns / 256 * 144;
}
"""


@pytest.fixture
def library(tmp_path):
    if COMPILER is None:
        pytest.skip("no C compiler")

    def build(body="", name="q4_K", size=144):
        source = tmp_path / "fake.c"
        source.write_text(SOURCE % {"name": name, "body": body, "bytes": size})
        target = tmp_path / "libggml-base.so"
        subprocess.run([COMPILER, "-shared", "-fPIC", "-o", target, source], check=True)
        return target

    return build


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("*(volatile int *)0 = 1;", "died of SIGSEGV"),
        ("abort();", "died of SIGABRT"),
        ("_exit(3);", "the self-test ended with 3"),
        ("return 7;", "it wrote 7 bytes of Q4_K, not 1152"),
        ("", "its Q4_K is off by 100.0%, more than 10%"),
    ],
)
def test_a_library_that_misbehaves_is_not_used(library, body, expected):
    with pytest.raises(Unusable, match=expected):
        trial.try_library(library(body), FORMS)


def test_a_library_that_hangs_is_not_used(library, monkeypatch):
    monkeypatch.setattr(trial, "TIME_LIMIT_S", 1)

    with pytest.raises(Unusable, match="did not end within 1 s"):
        trial.try_library(library("sleep(60);"), FORMS)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"name": "q5_K"}, "its type 12 is q5_K, not Q4_K"),
        ({"size": 160}, "a block of Q4_K has 160 bytes there, not 144"),
    ],
)
def test_a_library_whose_types_are_others_is_not_used(library, settings, expected):
    with pytest.raises(Unusable, match=expected):
        trial.try_library(library(**settings), FORMS)


def test_a_library_without_the_functions_is_not_used(tmp_path):
    (tmp_path / "libggml.so").write_text("no library")

    with pytest.raises(Unusable, match="it cannot be used"):
        trial.try_library(tmp_path / "libggml.so", FORMS)


def test_what_is_installed_passes():
    found = list(libraries._packaged("xllamacpp"))
    if not found:
        pytest.skip("xllamacpp is not installed")
    forms = {name: type_form(name) for name in trial.MOST_ERROR}

    trial.try_library(found[0].path, forms)
    for name, form in forms.items():
        Ggml(str(found[0].path)).check_type(name, form)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo something else", "does not say that it makes Q4_K_M .it ended with exit code 0"),
        ("kill -SEGV $$", "ended with SIGSEGV"),
    ],
)
def test_a_program_that_is_another_is_not_used(tmp_path, script, expected):
    program = tmp_path / "llama-quantize"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)

    with pytest.raises(Unusable, match=expected):
        trial.try_program(program)


def test_a_program_that_cannot_start_is_not_used(tmp_path):
    with pytest.raises(Unusable, match="it does not answer"):
        trial.try_program(tmp_path / "llama-quantize")
