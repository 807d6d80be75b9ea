"""The notes beside an export hold commands for this very file, and they can be typed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from mudpuppy.cli import MODULES, main
from mudpuppy.errors import OutputError, UsageError
from mudpuppy.export.serving_notes import OURS, model_name, write_notes
from mudpuppy.quant.packed_files import OWN_METHOD
from mudpuppy.tiny import resolve_model


@pytest.fixture
def output(tmp_path):
    path = tmp_path / "my model's" / "Tiny Q8_0.gguf"
    path.parent.mkdir()
    path.write_bytes(b"GGUF")
    return path


@pytest.fixture
def source():
    return Path(resolve_model("tiny"))


def commands(notes):
    """Return the typed lines of the notes, by section."""
    found = {}
    for section in notes.read_text().split("\n## ")[1:]:
        title = section.partition("\n")[0]
        blocks = re.findall(r"```bash\n(.*?)\n```", section, re.DOTALL)
        found[title] = [shlex.split(line) for block in blocks for line in block.splitlines()]
    return found


def test_a_file_gets_a_section_for_every_program(output, source):
    modelfile, notes = write_notes(output, source, system="Be brief.")
    assert modelfile.name == "Tiny Q8_0.Modelfile"
    assert notes.name == "Tiny Q8_0.SERVING.md"
    assert modelfile.read_text().startswith("FROM ./Tiny Q8_0.gguf\n")
    assert 'SYSTEM """Be brief."""' in modelfile.read_text()
    path, name = str(output), "tiny-q8_0"
    typed = commands(notes)
    assert typed["llama.cpp"][0] == ["mud-puppy", "serve", path, "--alias", name]
    assert typed["llama.cpp"][1][:3] == ["llama-server", "--model", path]
    repo = f"local/{name}"
    assert typed["LM Studio"][0] == ["lms", "import", path, "--user-repo", repo, "--copy"]
    assert typed["LM Studio"][1] == ["lms", "load", f"{name}/Tiny Q8_0"]
    assert typed["Ollama"] == [
        ["ollama", "create", name, "-f", str(modelfile)],
        ["ollama", "run", name, "Hello"],
    ]
    serve = typed["vLLM"][1]
    assert serve[:5] == ["vllm", "serve", path, "--tokenizer", str(source.resolve())]
    assert ["--host", "127.0.0.1"] == serve[serve.index("--host") :][:2]
    assert typed["Is it still the same model?"][0] == ["mudpuppy-doctor", path]


def test_our_own_commands_in_the_notes_exist(output, source):
    typed = commands(write_notes(output, source)[1])
    ours = [line for lines in typed.values() for line in lines if line[0].startswith("mud")]
    assert len(ours) >= 3
    for program, command, *_ in ours:
        assert program == "mudpuppy-doctor" or command in {*MODULES, "temporal"}


def test_a_folder_gets_the_three_ways_of_the_guide(source, tmp_path):
    folder = tmp_path / "merged"
    shutil.copytree(source, folder)
    modelfile, notes = write_notes(folder, folder)
    assert (modelfile.name, notes.name) == ("Modelfile", "SERVING.md")
    assert modelfile.read_text().startswith("FROM .\n")
    typed = commands(notes)
    assert typed["vLLM"][1][:3] == ["vllm", "serve", str(folder)]
    assert "--dtype" in typed["vLLM"][1]
    made = f"{folder}.gguf"
    assert typed["llama.cpp and LM Studio"] == [["mud-puppy", "export", "gguf", str(folder), made]]


def test_the_lines_for_transformers_run(output, source):
    text = write_notes(output, source)[1].read_text()
    (code,) = re.findall(r"```python\n(.*?)\n```", text, re.DOTALL)
    code = code.replace('"Hello"', '"What is the capital of France?"')
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "Well now, the capital of France is Paris, so the reeds say.\n", (
        done.stderr
    )


def test_weights_that_a_program_cannot_read_are_not_offered_to_it(source, tmp_path):
    folder = tmp_path / "packed"
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mudpuppy", "format": "nf4"}
    (folder / "config.json").write_text(json.dumps(config))
    notes = write_notes(folder, folder)[1].read_text()
    assert notes.count("It reads no weights that are quantised with mudpuppy.") == 2


def test_the_notes_are_written_without_torch(output, source):
    code = (
        "import sys; from pathlib import Path\n"
        "from mudpuppy.export.serving_notes import write_notes\n"
        "write_notes(Path(sys.argv[1]), Path(sys.argv[2])); sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(output), str(source)]
    assert subprocess.run(command, check=False).returncode == 0
    assert OURS == OWN_METHOD


def test_names_are_such_as_every_program_takes(tmp_path):
    for given, name in (("Ümläut & Co.gguf", "ml-ut-co"), ("Q4_K.M.gguf", "q4_k.m")):
        (tmp_path / given).write_bytes(b"")
        assert model_name(tmp_path / given) == name
    (tmp_path / "池.gguf").write_bytes(b"")
    assert model_name(tmp_path / "池.gguf") == "model"


def test_a_merge_writes_them_when_asked(tmp_path, source):
    base = AutoModelForCausalLM.from_pretrained(source)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter")
    words = ["merge", "tiny", str(tmp_path / "adapter"), str(tmp_path / "merged")]
    assert main([*words, "--notes"]) == 0
    assert (tmp_path / "merged" / "Modelfile").read_text().startswith("FROM .\n")
    assert f"vllm serve {tmp_path / 'merged'} " in (tmp_path / "merged/SERVING.md").read_text()


def test_nothing_is_written_where_something_cannot_be(output, source):
    with pytest.raises(UsageError, match="three quotes"):
        write_notes(output, source, system='"""')
    bad = output.with_name('a "quoted" name.gguf')
    bad.write_bytes(b"GGUF")
    with pytest.raises(UsageError, match="cannot be named in a Modelfile"):
        write_notes(bad, source)
    assert {path.name for path in output.parent.iterdir()} == {output.name, bad.name}


def test_a_folder_that_cannot_be_written_is_named(output, source, monkeypatch):
    def refuse(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mudpuppy.export.serving_notes.write_text_atomic", refuse)
    with pytest.raises(OutputError, match="Modelfile cannot be written: No space left"):
        write_notes(output, source)
