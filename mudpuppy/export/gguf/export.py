"""Export a model folder as one GGUF file: look at everything first, then write it in one pass."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mudpuppy.errors import OutputError, UsageError, near_names
from mudpuppy.export.gguf.plan import make_plan
from mudpuppy.export.gguf.settings import read_settings
from mudpuppy.export.gguf.tensors import QUANTS, Plan
from mudpuppy.files import atomic_file

Say = Callable[[str], None]
MAGIC = b"GGUF"
DEFAULT_QUANT = "q4_k_m"


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What an export wrote."""

    output: Path
    """The file."""
    architecture: str
    """As llama.cpp calls it."""
    quant: str
    """As `--quant` calls it."""
    quantiser: str
    """What made the types."""
    tensors: int
    """Tensors in the file."""
    types: dict[str, int]
    """Tensors of each type, as ggml calls it."""
    bytes: int
    """Bytes of the file."""
    seconds: float
    """Seconds of the whole export."""


def export_gguf(
    model: Path,
    output: Path,
    *,
    quant: str = DEFAULT_QUANT,
    llama_cpp: Path | None = None,
    pre_tokenizer: str | None = None,
    overwrite: bool = False,
    say: Say = lambda _: None,
) -> ExportReport:
    """Write a model as one GGUF file, whose tensors are those of llama.cpp's converter bit for bit.

    Args:
        model: folder with config.json, safetensors and a tokenizer.
        output: the file, whose name ends in .gguf; or a folder, in which it is named after the
            model and the type.
        quant: one of `QUANTS`.
        llama_cpp: checkout or build of llama.cpp that makes the K types; by default what is
            installed.
        pre_tokenizer: llama.cpp's name of it; found out where it is None.
        overwrite: whether a GGUF file of that name is replaced.
        say: called with what is about to happen, one line each.

    Raises:
        ExportRefused: the model cannot be written; the code says why.
        OutputError: the file may not be written.
        UsageError: the type is unknown, or what makes it is not installed.
        EngineError: the disk is full, or the quantiser failed.
    """
    started = time.monotonic()
    check_quant(quant)
    require_gguf()
    output = check_output(model, output, quant, overwrite=overwrite)
    settings = read_settings(model)
    plan = make_plan(model, settings)

    from mudpuppy.export.gguf.mix import choose_types
    from mudpuppy.export.gguf.quantise import open_quantiser
    from mudpuppy.export.gguf.vocabulary import read_vocabulary

    vocabulary = read_vocabulary(
        model, plan.num_rows, architecture=plan.architecture, pre_tokenizer=pre_tokenizer
    )
    types = choose_types(plan, quant)
    for note in (*plan.notes, *_left_out(plan), *vocabulary.notes):
        say(f"note: {note}")
    with open_quantiser(set(types.values()), llama_cpp) as quantiser:
        job = _Job(model, plan, quant, vocabulary, quantiser)
        say(f"writing {len(plan.tensors)} tensors of {plan.architecture} as {quant}: {output}")
        size = job.write(output, types) if quantiser.whole_file is None else job.pass_on(output)
        return ExportReport(
            output=output,
            architecture=plan.architecture,
            quant=quant,
            quantiser=quantiser.name,
            tensors=len(plan.tensors),
            types=dict(Counter(types.values())),
            bytes=size,
            seconds=time.monotonic() - started,
        )


@dataclass(frozen=True, slots=True)
class _Job:
    """Everything that a file is made of."""

    model: Path
    plan: Plan
    quant: str
    vocabulary: Any
    quantiser: Any

    def write(self, output: Path, types: Mapping[str, str], quant: str | None = None) -> int:
        """Write the file and return its bytes."""
        from mudpuppy.export.gguf.general import describe_general, describe_provenance
        from mudpuppy.export.gguf.write import write_gguf

        def describe(writer: Any) -> None:
            fit = self.vocabulary.fitting_name
            describe_general(writer, self.model, self.plan, quant or self.quant, name=fit)
            self.vocabulary.write(writer)
            describe_provenance(writer, self.model, self.quant, self.quantiser.name)

        return write_gguf(output, self.plan, types, describe, self.quantiser)

    def pass_on(self, output: Path) -> int:
        """Write a file that loses nothing, and let a program quantise it; return the bytes."""
        from mudpuppy.export.gguf.mix import choose_types, lossless_quant

        whole = lossless_quant(self.plan)
        prefix = f".{output.name}."
        with (
            atomic_file(output) as path,
            # made after it, and named as what a killed export leaves: the next one removes it
            TemporaryDirectory(dir=output.parent, prefix=prefix, suffix=".tmp") as folder,
        ):
            middle = Path(folder) / "whole.gguf"
            self.write(middle, choose_types(self.plan, whole), whole)
            self.quantiser.whole_file(middle, path, self.quant)
            return path.stat().st_size


def check_quant(quant: str) -> None:
    """Raise UsageError for a type that is none."""
    if quant not in QUANTS:
        raise UsageError(
            f"--quant {quant} is not known{near_names(quant.lower(), QUANTS)}",
            hint=f"known are {', '.join(QUANTS)}",
        )


def require_gguf() -> None:
    """Raise UsageError where the gguf package is missing."""
    if find_spec("gguf") is None:
        raise UsageError(
            "writing GGUF needs the gguf package, which is not installed",
            hint="pip install 'mudpuppy[gguf]'",
        )


def check_output(model: Path, output: Path, quant: str, *, overwrite: bool) -> Path:
    """Return the file to write.

    Raises:
        OutputError: it may not be written.
    """
    if output.is_dir():
        output = output / f"{model.name}-{quant.upper()}.gguf"
    if output.suffix.lower() != ".gguf":
        raise OutputError(
            f"{output} does not end in .gguf",
            hint=f"name it {output}.gguf, or name a folder that is there",
        )
    if not output.parent.is_dir():
        raise OutputError(
            f"the folder {output.parent} does not exist", hint=f"mkdir -p {output.parent}"
        )
    if output.exists():
        if not output.is_file() or _begins(output) not in (MAGIC, b""):
            raise OutputError(f"{output} is there, and no GGUF file", hint="name another file")
        if not overwrite:
            raise OutputError(f"{output} is there already", hint="--overwrite replaces it")
    return output


def _begins(path: Path) -> bytes:
    with path.open("rb") as handle:
        return handle.read(len(MAGIC))


def _left_out(plan: Plan) -> list[str]:
    """Return what was not written, one line for each reason."""
    reasons = Counter(plan.left_out.values())
    return [f"{count} tensors are left out: {why}" for why, count in reasons.items()]
