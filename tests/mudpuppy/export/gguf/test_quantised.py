"""K-quantised files against llama.cpp's own quantiser, whose hashes make_quantised.py keeps."""

import json
import platform
from functools import cache
from pathlib import Path

import pytest

from mudpuppy.export.gguf import libraries
from mudpuppy.export.gguf.tensors import MIXED
from tests.mudpuppy.export.gguf.make_quantised import FAMILIES
from tests.mudpuppy.export.gguf.models import make_model
from tests.mudpuppy.export.gguf.reading import digest
from tests.mudpuppy.export.gguf.writing import write_model

GOLDENS = json.loads((Path(__file__).parent / "goldens/quantised.json").read_text(encoding="utf-8"))
pytestmark = [
    pytest.mark.skipif(
        not list(libraries._packaged("xllamacpp")), reason="xllamacpp is not installed"
    ),
    pytest.mark.skipif(
        platform.machine() != "x86_64", reason="the hashes hold for x86-64 (make_quantised.py)"
    ),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    @cache
    def make(family):
        folder = tmp_path_factory.mktemp(family) / "model"
        make_model(folder, family, dtype="bf16", **FAMILIES[family])
        return folder

    return make


@pytest.mark.parametrize("quant", MIXED)
@pytest.mark.parametrize("family", FAMILIES)
def test_one_pass_writes_the_tensors_of_llama_cpps_own_quantiser(model, tmp_path, family, quant):
    ours = write_model(model(family), tmp_path / "model.gguf", quant)

    # its quantiser drops axes of length one that its converter, and we, keep: (1, 256) of a gate
    found = {name: line.replace("x1 ", " ") for name, line in digest(ours).items()}
    assert GOLDENS[family][quant] == found


def test_the_goldens_hold_every_type_that_the_mixtures_use():
    kinds = {
        line.split()[0]
        for family in GOLDENS.values()
        for quant in family.values()
        for line in quant.values()
    }

    assert kinds == {"F32", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q4_0", "Q5_0", "Q5_1"}
