"""The compiled pass is used only where it tells what numpy tells; numpy does the rest."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from harness.evidence.values import scan as scanning
from harness.evidence.values.compiled import choose as chooser
from harness.evidence.values.compiled import selftest
from harness.evidence.values.compiled.choose import COMPILE_BYTES, choose, get_source
from harness.evidence.values.compiled.kernel import ScanKernel
from harness.evidence.values.reading import Slice
from harness.evidence.values.scan import scan
from harness.facts.checkpoint import Tensor
from harness.registry import Missing
from mudpuppy.native import compiler as compilers
from mudpuppy.native.builds import get_build, library_path
from mudpuppy.native.compiler import find_compiler

SOURCE = chooser.SOURCE.read_text(encoding="utf-8")
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="there is no C compiler"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for every test, a quick compiler, and nothing chosen yet."""
    monkeypatch.setenv("MUDPUPPY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MUDPUPPY_KERNELS", raising=False)
    monkeypatch.setattr(chooser, "_known", {})
    monkeypatch.setattr(compilers, "FOR_THIS_PROCESSOR", ("",))
    monkeypatch.setattr(chooser, "FLAGS", ("-O1", *chooser.FLAGS[2:]))
    return tmp_path / "cache"


def change_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, old: str, new: str) -> None:
    assert old in SOURCE
    changed = tmp_path / "scan.c"
    changed.write_text(SOURCE.replace(old, new), encoding="utf-8")
    monkeypatch.setattr(chooser, "SOURCE", changed)


@needs_compiler
@pytest.mark.parametrize("flag", ["", "-mavx2", "-march=native"])
def test_every_width_of_vectors_sees_the_same(monkeypatch, flag):
    if flag == "-mavx2" and "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no AVX2")
    monkeypatch.setattr(compilers, "FOR_THIS_PROCESSOR", (flag,))
    monkeypatch.setattr(chooser, "FLAGS", ("-O3", *chooser.FLAGS[1:]))

    build = get_build(get_source(), find_compiler(), selftest.judge_library)

    assert build.verdict.passed, build.verdict.why
    assert "are seen as by numpy" in build.verdict.why


BUGS = {
    "the least is taken for the most": ("plain[i] > most", "plain[i] < most"),
    "one chunk hides another": ("low < t->low", "low > t->low"),
    "infinity is finite": ("{0x7c00, 0x8000", "{0x7c01, 0x8000"),
    "zero is the NaN": ("bits == f->sign", "bits == 0"),
    "ones are counted": ("found -= (Vector)(value == 0)", "found -= (Vector)(value == 1)"),
    "counters overflow": ("uint8_t, 255", "uint8_t, 300"),
    "zeros past the end": ("for (; i < bytes; i += (int64_t)sizeof(TYPE))", "for (; 0;)"),
    "words of another size": ("bytes % 8 == 0", "bytes % 16 == 0"),
    "subnormals are normal": ("(tiny & (1u << 23))", "(tiny & 0u)"),
    "another bias": ("0x07f00000u, 119", "0x07f00000u, 120"),
    "the next row is added": (
        "memcpy(&rest, row + i, (size_t)size)",
        "memcpy(&rest, row + i, WIDTH)",
    ),
    "what vanishes is zero": ("squares == 0 && is_zero(row, t->unit, f)", "squares == 0"),
    "a short file is whole": ("t->error = count ? errno : ENDED;", "t->error = 0;"),
    "the file's start is left out": ("t->offset + start", "start"),
    "a row too many": ("t->squares[first + i] =", "t->squares[first + i + 1] ="),
}


@needs_compiler
@pytest.mark.parametrize("bug", BUGS)
def test_a_wrong_pass_is_refused_and_numpy_reads(monkeypatch, tmp_path, bug):
    change_source(monkeypatch, tmp_path, *BUGS[bug])

    chosen = choose(COMPILE_BYTES)

    assert chosen.kernel is None
    assert re.search("refused: .* (differ from numpy's|taken for whole)", chosen.why)
    assert str(library_path(get_source(), find_compiler()).parent) in chosen.why


@needs_compiler
@pytest.mark.parametrize(
    ("line", "word"),
    [("__builtin_trap();", "SIG(ILL|TRAP)"), ("*(volatile int *)8 = 1;", "SIGSEGV")],
)
def test_a_pass_that_kills_its_process_is_an_outcome(monkeypatch, tmp_path, line, word):
    change_source(monkeypatch, tmp_path, "    t->seen = t->error", f"    {line} t->seen = t->error")

    first = choose(COMPILE_BYTES)
    chooser.forget()
    monkeypatch.setattr(selftest, "run_apart", lambda *_: pytest.fail("it was tried again"))

    assert first.kernel is None
    assert re.search(f"died of {word}", first.why)
    assert choose(COMPILE_BYTES) == first


def test_without_a_compiler_numpy_reads_and_the_reason_is_said(monkeypatch):
    monkeypatch.setenv("CC", "/no/such/compiler")

    chosen = choose(COMPILE_BYTES)

    assert chosen.kernel is None
    assert chosen.why == "no C compiler (CC=/no/such/compiler)"


@needs_compiler
def test_a_cache_that_cannot_be_written_is_no_crash(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MUDPUPPY_CACHE", str(tmp_path / "file"))

    assert "cannot be built" in choose(COMPILE_BYTES).why


@needs_compiler
def test_nothing_is_compiled_for_little_and_what_is_compiled_is_used(monkeypatch, cache):
    assert scanning.find_kernel(scanning.COMPILED_FROM_BYTES - 1) is None
    assert not cache.exists()
    assert "nothing is compiled yet" in choose(scanning.COMPILED_FROM_BYTES).why
    assert not cache.exists()

    assert isinstance(choose(COMPILE_BYTES).kernel, ScanKernel)
    assert isinstance(scanning.find_kernel(scanning.COMPILED_FROM_BYTES), ScanKernel)

    monkeypatch.setenv("MUDPUPPY_KERNELS", "0")
    assert choose(COMPILE_BYTES).why == "MUDPUPPY_KERNELS=0"


@pytest.fixture
def kernel() -> ScanKernel:
    found = choose(COMPILE_BYTES).kernel
    if found is None:
        pytest.skip(choose(COMPILE_BYTES).why)
    return found


def part(dtype: str, stop: int, unit: int, rows: int = 0) -> Slice:
    tensor = Tensor(name="t", dtype=dtype, shape=(stop,), start=0, end=stop, file="f")
    return Slice(number=0, tensor=tensor, start=0, stop=stop, unit=unit, rows=rows)


def test_blocks_and_halves_of_values_are_left_to_numpy(kernel):
    assert kernel.takes(part("F32", 64, 16))
    assert kernel.takes(part("C64", 64, 16))
    assert not kernel.takes(part("Q4_0", 180, 18))
    assert not kernel.takes(part("F32", 60, 6, rows=10))
    assert not kernel.takes(part("F32", 63, 16))


def test_what_the_system_refuses_to_read_is_a_reason(kernel, tmp_path):
    handle = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(Missing, match="f cannot be read: Is a directory"):
            kernel.read(handle, part("F32", 64, 16))
    finally:
        os.close(handle)


def test_a_tensor_of_many_jobs_and_odd_rows_is_seen_as_by_numpy(kernel, tmp_path, monkeypatch):
    values = np.random.default_rng(0).standard_normal((777, 3001)).astype("<f2")
    values[500] = 0
    values[3, 3000] = np.nan
    (tmp_path / "f").write_bytes(b"head" + values.tobytes())
    tensor = Tensor(
        name="t", dtype="F16", shape=values.shape, start=4, end=4 + values.nbytes, file="f"
    )
    monkeypatch.setattr(scanning, "JOB_BYTES", 100_000)
    seen = {}
    for name, used in (("compiled", kernel), ("numpy", None)):
        monkeypatch.setattr(scanning, "find_kernel", lambda _, used=used: used)
        (found,) = scan(tmp_path, [tensor], rows=True)
        joined = {
            key: np.concatenate([getattr(one, key) for one in found.sums])
            for key in ("squares", "marks", "zero")
        }
        seen[name] = found.extremes, sum(one.zeros for one in found.sums), joined
    (mine, zeros, sums), (numpys, their_zeros, their_sums) = seen["compiled"], seen["numpy"]
    assert (mine.low, mine.high, mine.nonfinite) == (numpys.low, numpys.high, 1)
    assert zeros == their_zeros >= 3001
    for key in ("marks", "zero"):
        np.testing.assert_array_equal(sums[key], their_sums[key])
    good = np.arange(777) != 3
    np.testing.assert_allclose(sums["squares"][good], their_sums["squares"][good], rtol=1e-6)
