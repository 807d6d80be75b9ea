"""Write a model as GGUF without its tokenizer."""

from pathlib import Path

from mudpuppy.export.gguf.general import describe_general
from mudpuppy.export.gguf.mix import choose_types
from mudpuppy.export.gguf.plan import make_plan
from mudpuppy.export.gguf.quantise import open_quantiser
from mudpuppy.export.gguf.settings import read_settings
from mudpuppy.export.gguf.write import write_gguf


def write_model(model: Path, output: Path, quant: str) -> Path:
    """Write tensors and settings of a model folder, and return the file."""
    plan = make_plan(model, read_settings(model))
    types = choose_types(plan, quant)
    with open_quantiser(set(types.values())) as quantiser:
        write_gguf(
            output,
            plan,
            types,
            lambda writer: describe_general(writer, model, plan, quant),
            quantiser,
        )
    return output
