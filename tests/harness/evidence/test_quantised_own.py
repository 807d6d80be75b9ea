"""The doctor's own reading of our 4-bit layers against the engine's, and what it finds wrong."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from harness.evidence.quantised.own import FORMS, examine_own, lost_layers, read_own
from harness.evidence.quantised.own_names import is_listed
from harness.facts.checkpoint import Tensor
from mudpuppy.quant.formats import FORMATS
from mudpuppy.safefile import read_header


def write(
    folder: Path, name: str, columns: int, block: int
) -> tuple[dict[str, Tensor], np.ndarray]:
    """Write a layer of 9 rows, and return its parts and the engine's values."""
    form = FORMATS[name]
    weight = torch.randn(9, columns, generator=torch.Generator().manual_seed(columns))
    packed = form.quantise(weight, block)
    save_file({"x.qweight": packed.qweight, "x.scales": packed.scales}, folder / "m.safetensors")
    parts = {
        entry.name.removeprefix("x."): Tensor(
            name=entry.name,
            dtype=entry.dtype,
            shape=entry.shape,
            file="m.safetensors",
            start=entry.start,
            end=entry.start + entry.size,
        )
        for entry in read_header(folder / "m.safetensors").values()
    }
    return parts, form.dequantise(packed).numpy()


def said(name: str, block: int, **more: object) -> dict[str, object]:
    return {"quant_method": "mudpuppy", "version": 1, "format": name, "block_size": block, **more}


@pytest.mark.parametrize("columns", [64, 75, 150])
@pytest.mark.parametrize("name", list(FORMATS))
def test_rows_are_what_the_engine_computes_bit_for_bit(name, columns, tmp_path):
    block = FORMATS[name].default_block_size
    parts, values = write(tmp_path, name, columns, block)
    found = read_own(tmp_path, parts, said(name, block), columns, 2, 9)
    assert found is not None
    wanted = values[2:9]
    # the doctor's table of bitsandbytes is the paper's, in few digits
    close = np.allclose(found, wanted, rtol=1e-5, atol=0) if name.startswith("bnb") else None
    assert close or np.array_equal(found, wanted)
    assert not examine_own(tmp_path, "x", parts, said(name, block)).flaws


def test_every_format_of_the_engine_is_known():
    assert set(FORMS) == set(FORMATS)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"block_size": 16}, "block"),
        ({"block_size": 0}, "part"),
        ({"format": "nf5"}, "part"),
        ({"version": 2}, "part"),
        ({"format": "int4"}, "part"),
    ],
)
def test_a_declaration_that_is_not_the_layers_is_a_flaw(changes, kind, tmp_path):
    parts, _ = write(tmp_path, "nf4", 64, 64)
    (flaw,) = examine_own(tmp_path, "x", parts, {**said("nf4", 64), **changes}).flaws
    assert flaw.kind == kind


def test_declared_layers_that_are_not_there_are_named():
    declared = said("nf4", 64, modules=["model.layers.0.a", "model.layers.1.a"])
    (lost,) = lost_layers(declared, ["language_model.model.layers.0.a"])
    assert lost.name == "model.layers.1.a"
    assert is_listed("layers.1.a", declared)
    assert not is_listed("layers.2.a", declared)
