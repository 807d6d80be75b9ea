"""The vocabularies that llama.cpp's own converter writes, made in a process of its own.

Run as a script, with a list of [model folder, architecture, pre-tokenizer, output] as JSON. The
pre-tokenizer is given, since the converter knows published vocabularies alone.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from tests.mudpuppy.export.gguf.upstream import PACKAGE


def convert_vocabularies(jobs: list[tuple[Path, str, str, Path]]) -> None:
    """Write a GGUF file with nothing but a tokenizer for every job."""
    words = [[str(folder), kind, pre, str(output)] for folder, kind, pre, output in jobs]
    command = [sys.executable, "-m", __name__, json.dumps(words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


def _main() -> None:
    found = find_spec(PACKAGE)
    assert found is not None
    assert found.origin is not None
    root = Path(found.origin).parent / "llama.cpp"
    sys.path[:0] = [str(root / "gguf-py"), str(root)]
    import gguf
    from conversion import get_model_class

    for folder, kind, pre, output in json.loads(sys.argv[1]):
        made = object.__new__(get_model_class(kind))
        made.dir_model = Path(folder)
        made.hparams = json.loads((made.dir_model / "config.json").read_text(encoding="utf-8"))
        made.is_mistral_format, made.origin_hf_arch = False, None
        made.get_vocab_base_pre = lambda tokenizer, pre=pre: pre
        made.gguf_writer = gguf.GGUFWriter(output, "llama")
        made.set_vocab()
        made.gguf_writer.write_header_to_file()
        made.gguf_writer.write_kv_data_to_file()
        made.gguf_writer.close()


if __name__ == "__main__":
    _main()
