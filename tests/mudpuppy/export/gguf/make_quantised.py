"""Write goldens/quantised.json: what llama.cpp's own quantiser makes of small models.

    python -m tests.mudpuppy.export.gguf.make_quantised LIBLLAMA

LIBLLAMA is a build of llama.cpp's library (benchmarks/libllama.py says how to make one). Every
model is written as F32 by this project, whose tensors are those of llama.cpp's converter
(test_against_upstream.py), and given to `llama_model_quantize`, as the program `llama-quantize`
does it; kept are type, shape and hash of every tensor. The bytes of K types hold for x86-64, whose
builds of `ggml-base` fuse no multiplication with an addition; elsewhere compilers may.
"""

import json
import sys
import tempfile
from pathlib import Path

from benchmarks.libllama import quantise_file
from mudpuppy.export.gguf.tensors import MIXED
from tests.mudpuppy.export.gguf.models import make_model
from tests.mudpuppy.export.gguf.reading import digest
from tests.mudpuppy.export.gguf.writing import write_model

TARGET = Path(__file__).parent / "goldens/quantised.json"
WIDE = {"hidden_size": 256, "intermediate_size": 512}
FAMILIES = {
    "llama3": {**WIDE, "num_hidden_layers": 9},
    "qwen2": {**WIDE, "num_hidden_layers": 4},
    "gemma2": {**WIDE, "head_dim": 64, "query_pre_attn_scalar": 64, "num_hidden_layers": 4},
    "phi3": {**WIDE, "num_hidden_layers": 4},
    "mixtral": {**WIDE, "num_hidden_layers": 2, "num_local_experts": 8},
    "qwen2moe": {
        **WIDE,
        "num_hidden_layers": 3,
        "moe_intermediate_size": 256,
        "shared_expert_intermediate_size": 512,
    },
    "qwen3moe": {**WIDE, "head_dim": 64, "num_hidden_layers": 2, "moe_intermediate_size": 256},
    "gemma3": {**WIDE, "head_dim": 64, "query_pre_attn_scalar": 64},
    "qwen3": {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3},
}
"""Models, and their sizes: layers enough for every exception of a mixture; Qwen 3's rows are filled
by no block of 256, so that its types fall back."""


def main() -> None:
    """Write the file."""
    libllama = Path(sys.argv[1]).resolve()
    found: dict[str, dict[str, dict[str, str]]] = {}
    for family, sizes in FAMILIES.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_model(folder / "model", family, dtype="bf16", **sizes)
            write_model(folder / "model", folder / "f32.gguf", "f32")
            found[family] = {}
            for quant in MIXED:
                target = folder / f"{quant}.gguf"
                quantise_file(libllama, folder / "f32.gguf", target, quant, threads=1)
                found[family][quant] = digest(target)
    TARGET.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
