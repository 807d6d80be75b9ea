"""Which path computes: a kernel that was tested here, or PyTorch with the reason."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch

from mudpuppy.native import compiler as compilers
from mudpuppy.native.apart import run_apart
from mudpuppy.native.builds import Build, find_build, get_build, library_path
from mudpuppy.native.compiler import KernelUnavailable, find_compiler
from mudpuppy.native.verdicts import VERDICT
from mudpuppy.quant.formats import FORMATS
from mudpuppy.quant.kernels import choose as chooser
from mudpuppy.quant.kernels import compiler, selftest
from mudpuppy.quant.kernels.compiler import describe_kernel, get_source
from mudpuppy.quant.kernels.selftest import judge_library

CPU = torch.device("cpu")
SOURCE = compiler.SOURCE.read_text(encoding="utf-8")
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="there is no C compiler"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for every test, and a process that has chosen nothing yet."""
    monkeypatch.setenv("MUDPUPPY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MUDPUPPY_KERNELS", raising=False)
    monkeypatch.setattr(chooser, "_known", {})
    return tmp_path / "cache"


def change_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, old: str, new: str) -> None:
    assert old in SOURCE
    changed = tmp_path / "dequantize.c"
    changed.write_text(SOURCE.replace(old, new), encoding="utf-8")
    monkeypatch.setattr(compiler, "SOURCE", changed)


def build_here() -> Build:
    return get_build(get_source(), find_compiler(), judge_library)


def library_here() -> Path:
    return library_path(get_source(), find_compiler())


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@needs_compiler
def test_the_compiled_kernel_is_chosen_and_built_once(cache: Path):
    chosen = chooser.choose(CPU)

    assert chosen.choice.value == "compiled C", chosen.choice.reason
    assert "bits of the PyTorch path" in chosen.choice.reason
    (folder,) = [path for path in (cache / "kernels").iterdir() if path.is_dir()]
    assert library_here().parent == folder
    written = library_here().stat().st_mtime_ns
    chooser.forget()
    assert chooser.choose(CPU).choice == chosen.choice
    assert library_here().stat().st_mtime_ns == written


WRONG_PARTS = {
    "out is too narrow": (torch.Size((2, 64)), (0, 2), (0, 128), "a buffer of shape"),
    "out is too short": (torch.Size((1, 128)), (0, 2), (0, 128), "a buffer of shape"),
    "inside a block": (torch.Size((2, 96)), (0, 2), (32, 128), "does not begin a block of 64"),
    "rows below the last": (torch.Size((2, 128)), (1, 3), (0, 128), "of a matrix of 2 x 130"),
    "columns beyond the last": (torch.Size((2, 132)), (0, 2), (0, 132), "of a matrix of 2 x 130"),
    "rows before the first": (torch.Size((2, 128)), (-1, 1), (0, 128), "of a matrix of 2 x 130"),
}


@needs_compiler
@pytest.mark.parametrize("wrong", WRONG_PARTS)
def test_a_kernel_writes_nothing_beside_what_it_was_given(wrong):
    shape, rows, columns, said = WRONG_PARTS[wrong]
    form = FORMATS["nf4"]
    packed = form.quantise(torch.ones(2, 130), 64)
    assert chooser.choose(CPU).kernel is not None
    out = torch.full(shape, 7.0)
    with pytest.raises(ValueError, match=said):
        chooser.dequantise_into(form, packed, out, rows, columns)
    assert bool((out == 7.0).all())


@needs_compiler
@pytest.mark.parametrize(
    "mixed",
    [{"block_size": 32}, {"in_features": 140}, {"block_size": 7}],
    ids=["another block size", "more columns", "blocks of seven"],
)
def test_levels_and_scales_of_two_matrices_are_refused_before_a_kernel_reads_them(mixed):
    form = FORMATS["nf4"]
    packed = form.quantise(torch.ones(2, 130), 64)._replace(**mixed)
    out = torch.empty(2, packed.in_features)
    with pytest.raises(ValueError, match=r"levels \(2, 65\) and scales \(2, 3\)"):
        chooser.dequantise_into(form, packed, out, (0, 2), (0, packed.in_features))


@needs_compiler
@pytest.mark.parametrize("flag", ["", "-mssse3", "-march=native"])
def test_every_path_through_the_source_gives_the_same_bits(monkeypatch, tmp_path, flag):
    if flag == "-mssse3" and os.uname().machine != "x86_64":
        pytest.skip("that flag is for x86")
    monkeypatch.setattr(compilers, "FOR_THIS_PROCESSOR", (flag,))

    build = build_here()

    assert build.verdict.passed, build.verdict.why


BUGS = {
    "nibbles swapped": ("values[q[j] & 15]", "values[q[j] >> 4]"),
    "truncated bf16": ("bits + 0x7fffu + ((bits >> 16) & 1u)", "bits"),
    "ties away from even": ("bits + 0x7fffu + ((bits >> 16) & 1u)", "bits + 0x8000u"),
    "the neighbour's scale": ("int64_t scale = row", "int64_t scale = (row > 0) + row"),
    "short last block": (": t->columns;", ": t->columns - (start > 0);"),
    "exponent 0 is 0": ("exponent ? exponent << 23 : 0x00400000u", "exponent << 23"),
    "odd start": ("if (start & 1) {", "if (0) {"),
    "odd end": ("if (stop & 1) out", "if (0) out"),
}


@needs_compiler
@pytest.mark.parametrize("bug", BUGS)
def test_a_wrong_kernel_is_refused_by_name(monkeypatch, tmp_path, bug):
    monkeypatch.setattr(compilers, "FOR_THIS_PROCESSOR", ("",))
    change_source(monkeypatch, tmp_path, *BUGS[bug])

    chosen = chooser.choose(CPU)

    assert chosen.kernel is None
    assert re.search(r"refused: \d+ values of (int4|nf4|mxfp4) \d+ x", chosen.choice.reason)
    assert str(library_here().parent) in chosen.choice.reason


@needs_compiler
@pytest.mark.parametrize("blind", ["the stored verdict", "the check in this process"])
def test_either_check_alone_refuses_a_wrong_kernel(monkeypatch, tmp_path, blind):
    monkeypatch.setattr(compilers, "FOR_THIS_PROCESSOR", ("",))
    change_source(monkeypatch, tmp_path, *BUGS["nibbles swapped"])
    if blind == "the stored verdict":
        monkeypatch.setattr(chooser, "judge_library", lambda _: (True, "said to be right"))
    else:
        monkeypatch.setattr(chooser, "find_wrong_rows", lambda *_: (1, ""))

    chosen = chooser.choose(CPU)

    assert chosen.kernel is None
    assert re.search(r"refused: \d+ values of (int4|nf4|mxfp4) \d+ x", chosen.choice.reason)


@needs_compiler
@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("__builtin_trap();", "SIG(ILL|TRAP)"),
        ("*(volatile int *)8 = 1;", "SIGSEGV"),
    ],
)
def test_a_kernel_that_kills_its_process_is_an_outcome(monkeypatch, tmp_path, line, word):
    change_source(monkeypatch, tmp_path, "    task->next = 0;", f"    {line} task->next = 0;")

    first = chooser.choose(CPU)
    chooser.forget()
    monkeypatch.setattr(selftest, "run_apart", lambda *_: pytest.fail("it was tried again"))

    assert first.kernel is None
    assert re.search(f"died of {word}", first.choice.reason)
    assert chooser.choose(CPU).choice == first.choice


@needs_compiler
def test_a_test_that_was_killed_from_outside_says_nothing_of_the_kernel(monkeypatch, cache: Path):
    command = ["sh", "-c", "kill -9 $$"]
    monkeypatch.setattr(
        selftest, "run_apart", lambda _, words, limit: run_apart(command, words, limit)
    )

    assert chooser.choose(CPU).choice.reason == "the self-test was killed from outside"
    assert not [name for name in names_in(cache / "kernels") if not name.endswith(".lock")]


@needs_compiler
def test_a_library_that_changed_in_the_cache_is_built_again(cache: Path):
    chooser.choose(CPU)
    library = library_here()
    good = library.read_bytes()
    library.unlink()  # the old one stays mapped
    library.write_bytes(good[:1000])
    chooser.forget()

    assert chooser.choose(CPU).choice.value == "compiled C"
    assert library.read_bytes() == good


@needs_compiler
def test_a_library_that_others_can_write_is_not_loaded():
    build = build_here()
    build.library.chmod(0o777)

    assert "can be written by them" in chooser.choose(CPU).choice.reason


@needs_compiler
def test_each_kind_of_processor_has_a_build_of_its_own(monkeypatch):
    here = library_here()
    monkeypatch.setattr(compilers, "processor", lambda: "another one")

    assert library_here() != here
    assert find_build(get_source(), find_compiler()) is None


@pytest.mark.parametrize("named", ["/no/such/compiler", '"', "false"])
def test_without_a_compiler_pytorch_computes_and_the_reason_is_said(monkeypatch, named):
    monkeypatch.setenv("CC", named)

    chosen = chooser.choose(CPU)

    assert chosen.kernel is None
    assert chosen.choice.value == "PyTorch"
    assert named in chosen.choice.reason


@needs_compiler
def test_a_source_that_does_not_compile_is_no_crash(monkeypatch, tmp_path):
    change_source(monkeypatch, tmp_path, "#include <stdint.h>", "#error no such thing")

    assert "cannot compile dequantize.c" in chooser.choose(CPU).choice.reason


@needs_compiler
def test_a_cache_that_cannot_be_written_is_no_crash(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MUDPUPPY_CACHE", str(tmp_path / "file"))

    assert "cannot be built" in chooser.choose(CPU).choice.reason


def test_kernels_can_be_switched_off_in_two_ways(monkeypatch):
    with chooser.allowing(False):
        assert chooser.choose(CPU).choice.reason == "--kernels off"
    monkeypatch.setenv("MUDPUPPY_KERNELS", "0")
    assert chooser.choose(CPU).choice.reason == "MUDPUPPY_KERNELS=0"


@needs_compiler
def test_what_will_compute_is_told_without_compiling(monkeypatch, tmp_path):
    assert describe_kernel().startswith("C, compiled and tested at first use (")
    chooser.choose(CPU)
    assert describe_kernel().startswith("compiled C (")
    monkeypatch.setenv("MUDPUPPY_KERNELS", "0")
    assert describe_kernel() == "PyTorch (MUDPUPPY_KERNELS=0)"
    monkeypatch.delenv("MUDPUPPY_KERNELS")
    change_source(monkeypatch, tmp_path, "bits + 0x7fffu", "bits")
    monkeypatch.setattr(compilers, "FOR_THIS_PROCESSOR", ("",))
    chooser.forget()
    chooser.choose(CPU)
    assert describe_kernel().startswith("PyTorch (the compiled kernel was refused: ")
    monkeypatch.setenv("CC", "/no/such/compiler")
    assert describe_kernel() == "PyTorch (no C compiler (CC=/no/such/compiler))"


def test_another_device_has_no_kernel():
    assert chooser.choose(torch.device("meta")).choice.reason == "there is no kernel for meta"


def test_rows_are_the_same_with_and_without():
    form = FORMATS["nf4"]
    packed = form.quantise(torch.randn(30, 130), 64)
    found = {}
    for kernels in (True, False):
        out = torch.empty(10, 66, dtype=torch.bfloat16)
        with chooser.allowing(kernels):
            chooser.dequantise_into(form, packed, out, (5, 15), (64, 130))
        found[kernels] = out

    assert torch.equal(found[True], found[False])
    assert torch.equal(found[True], form.dequantise(packed, torch.bfloat16)[5:15, 64:130])


def _build_here(_: int) -> str:
    return build_here().verdict.why


@needs_compiler
def test_processes_that_start_together_build_once(cache: Path):
    with multiprocessing.get_context("fork").Pool(3) as pool:
        said = pool.map(_build_here, range(3), chunksize=1)

    assert len(set(said)) == 1
    folders = [path for path in (cache / "kernels").iterdir() if path.is_dir()]
    assert len(folders) == 1
    assert json.loads((folders[0] / VERDICT).read_text())["passed"] is True


def test_an_unknown_ending_of_a_process_is_told():
    said, _ = run_apart(["sh", "-c", "echo one >&2; echo two >&2; exit 7"], "", 10)
    assert said == "the self-test ended with 7: two"
    said, _ = run_apart(["sh", "-c", f"kill -{int(signal.SIGSEGV)} $$"], "", 10)
    assert said == "the self-test died of SIGSEGV"
    with pytest.raises(KernelUnavailable, match="did not end"):
        run_apart(["sleep", "5"], "", 0.1)
