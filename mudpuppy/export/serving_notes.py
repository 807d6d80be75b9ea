"""How an export is served: a Modelfile, and the commands for this very file, written beside it."""

from __future__ import annotations

import json
import re
import shlex
from itertools import groupby
from pathlib import Path

from mudpuppy.errors import OutputError
from mudpuppy.export.modelfile import Speech, read_speech, write_modelfile
from mudpuppy.files import write_text_atomic
from mudpuppy.quant.declared import find_declared, read_settings

CONTEXT = 4096
"""Tokens of a conversation that are advised; fewer where the model has fewer positions."""
OURS = "mudpuppy"
"""The `quant_method` that only we read."""
HALVES = {"float16", "bfloat16", "float32"}
_SIGNS = re.compile(r"[^a-z0-9._-]+")
"""What names of models at Ollama and LM Studio do not hold."""
_ENDPOINT = "http://127.0.0.1:{port}/v1"


def write_notes(output: Path, source: Path, *, system: str | None = None) -> tuple[Path, ...]:
    """Write a Modelfile and SERVING.md beside an export.

    Args:
        output: a GGUF file, beside which they get its name, or a model folder, in which they lie.
        source: folder that the model was made from; for a folder, the folder itself.
        system: system prompt for Ollama.

    Returns:
        What was written.

    Raises:
        UsageError: the system prompt cannot be quoted.
        ModelError: a file of `source` is damaged.
        OutputError: the notes cannot be written.
    """
    output, source = output.resolve(), source.resolve()
    speech = read_speech(source)
    if output.is_dir():
        modelfile, notes = output / "Modelfile", output / "SERVING.md"
        origin = "."
    else:
        modelfile = output.with_name(f"{output.stem}.Modelfile")
        notes = output.with_name(f"{output.stem}.SERVING.md")
        origin = f"./{output.name}"
    texts = {
        modelfile: write_modelfile(origin, speech, system=system),
        notes: describe(output, source, modelfile, speech, system=system),
    }
    for path, text in texts.items():
        try:
            write_text_atomic(path, text)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}") from error
    return tuple(texts)


def describe(
    output: Path, source: Path, modelfile: Path, speech: Speech, *, system: str | None = None
) -> str:
    """Return the text of SERVING.md: a section for each program.

    Args:
        output: the file or folder, absolute.
        source: folder that a GGUF file was made from.
        modelfile: Ollama's Modelfile beside it.
        speech: how the model is spoken to.
        system: the system prompt that the Modelfile holds.
    """
    is_file = output.is_file()
    sections = [f"# Serving {output.name}", _intro(speech, system)]
    if is_file:
        sections += [_llama_cpp(output), _lm_studio(output)]
    else:
        sections.append(_export(output))
    sections += [
        _ollama(output, modelfile, speech),
        _vllm(output, source),
        _transformers(source, system),
        _evaluate(output),
    ]
    return "\n\n".join(sections) + "\n"


def model_name(output: Path) -> str:
    """Return a name that every program takes for a model."""
    stem = output.stem if output.is_file() else output.name
    return _SIGNS.sub("-", stem.lower()).strip("-._") or "model"


def _intro(speech: Speech, system: str | None) -> str:
    lines = []
    if speech.stops:
        lines.append(f"An answer ends with {' or '.join(f'`{one}`' for one in speech.stops)}.")
    if speech.sampling:
        said = ", ".join(f"{name} {value:g}" for name, value in speech.sampling.items())
        lines.append(f"The model's own settings for sampling: {said}.")
    if system is not None:
        lines.append("The system prompt is in the Modelfile; elsewhere send it with every request.")
    lines.append("Every server below listens on this machine alone, as its command is written.")
    return "\n".join(lines)


def _llama_cpp(output: Path) -> str:
    name, path = model_name(output), shlex.quote(str(output))
    return _section(
        "llama.cpp",
        f"mud-puppy serve {path} --alias {name}",
        _Said("Or with llama.cpp's own program:"),
        f"llama-server --model {path} --alias {name} --host 127.0.0.1 --port 8080 --jinja",
    )


def _lm_studio(output: Path) -> str:
    name, path = model_name(output), shlex.quote(str(output))
    folder = f"~/.lmstudio/models/local/{name}"
    return _section(
        "LM Studio",
        f"lms import {path} --user-repo local/{name} --copy",
        f'lms load "{name}/{output.stem}"' if _is_tame(output.stem) else "lms load",
        "lms server start",
        _Said("Without `lms import`, copy it; `lms ps` says then what clients call the model:"),
        f"mkdir -p {folder} && cp {path} {folder}/",
    )


def _export(folder: Path) -> str:
    made = folder.with_name(f"{folder.name}.gguf")
    return _section(
        "llama.cpp and LM Studio",
        _Said("They read GGUF files:"),
        f"mud-puppy export gguf {shlex.quote(str(folder))} {shlex.quote(str(made))}",
    )


def _ollama(output: Path, modelfile: Path, speech: Speech) -> str:
    if output.is_dir() and (method := _method(output)):
        return _section("Ollama", _Said(f"It reads no weights that are quantised with {method}."))
    name = model_name(output)
    remark = _Said(f"The template in it: {speech.remark}.")
    return _section(
        "Ollama",
        f"ollama create {name} -f {shlex.quote(str(modelfile))}",
        f'ollama run {name} "Hello"',
        *([remark] if speech.remark else []),
    )


def _vllm(output: Path, source: Path) -> str:
    name, path = model_name(output), shlex.quote(str(output))
    shared = f"--served-model-name {name} --host 127.0.0.1 --port 8000"
    length = f"--max-model-len {_context(source)}"
    if output.is_file():
        return _section(
            "vLLM",
            _Said("It reads GGUF files by a plugin, on a GPU, with the tokenizer of the original:"),
            "pip install vllm vllm-gguf-plugin",
            f"vllm serve {path} --tokenizer {shlex.quote(str(source))} {shared} {length}",
        )
    if (method := _method(output)) == OURS:
        return _section("vLLM", _Said(f"It reads no weights that are quantised with {method}."))
    return _section(
        "vLLM",
        "pip install vllm",
        f"vllm serve {path} {shared} --dtype {_dtype(source)} {length}",
    )


def _transformers(source: Path, system: str | None) -> str:
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": "Hello"})
    shown = json.dumps(messages, ensure_ascii=False)  # Python reads it as it is
    code = f"""\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = {str(source)!r}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map="auto")
messages = {shown}
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
).to(model.device)
made = model.generate(**inputs, max_new_tokens=64, do_sample=False)
print(tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""
    return f"## transformers\n\n```python\n{code}\n```"


def _evaluate(output: Path) -> str:
    port = 1234 if output.is_file() else 8000
    url = _ENDPOINT.format(port=port)
    return _section(
        "Is it still the same model?",
        f"mudpuppy-doctor {shlex.quote(str(output))}",
        f"mudpuppy-doctor --endpoint {url}",
        f"mud-puppy temporal evaluate --endpoint {url} --test_file dev_subset.jsonl",
        _Said(
            "8080 is the port of llama-server, 1234 that of mud-puppy serve and LM Studio, 11434 "
            "that of Ollama, 8000 that of vLLM."
        ),
    )


class _Said(str):
    """A sentence of a section; everything else is typed."""


def _section(title: str, *parts: str) -> str:
    """Return a section of sentences and of commands, which stand in blocks of their own."""
    lines = [f"## {title}", ""]
    for is_said, some in groupby(parts, key=lambda part: isinstance(part, _Said)):
        group = list(some)
        lines += [*group, ""] if is_said else ["```bash", *group, "```", ""]
    return "\n".join(lines).rstrip()


def _is_tame(text: str) -> bool:
    """Whether a text needs no quoting inside double quotes."""
    return not set(text) & set('"$`\\!')


def _method(folder: Path) -> str:
    """Return the method that a folder's weights are quantised with; empty for plain ones."""
    return str(find_declared(folder, read_settings(folder)).get("quant_method") or "")


def _context(source: Path) -> int:
    settings = read_settings(source)
    text = settings.get("text_config")
    for part in (settings, text if isinstance(text, dict) else {}):
        room = part.get("max_position_embeddings")
        if type(room) is int and room > 0:
            return min(CONTEXT, room)
    return CONTEXT


def _dtype(source: Path) -> str:
    settings = read_settings(source)
    found = settings.get("dtype") or settings.get("torch_dtype")
    return found if isinstance(found, str) and found in HALVES else "auto"
