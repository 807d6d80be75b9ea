"""`temporal merge` and `convert`: the document's flags, and what is refused with what to type."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import pytest

from mudpuppy.cli import main
from mudpuppy.errors import EngineError, ModelError
from mudpuppy.pipelines.temporal import converting, merging


def parse(module, *words):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return vars(parser.parse_args(words))


def test_flags_and_defaults_are_the_document_s():
    args = parse(merging, "--base_model", "b", "--lora_path", "l", "--output_path", "o")
    assert (args["dtype"], args["verify"]) == ("bfloat16", False)
    args = parse(converting, "--model_path", "m", "--output-path", "o.gguf")
    assert (args["quant_type"], args["llama_cpp_path"]) == ("q4_k_m", None)
    assert parse(converting, "--model_path", "m", "--output_path", "o", "--quant_type", "Q8_0")


@pytest.mark.parametrize("module", [merging, converting])
def test_what_the_document_requires_is_required(module, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(module)
    assert ended.value.code == 2
    assert "output_path" in capsys.readouterr().err


def test_the_folder_of_a_run_means_its_adapter(tmp_path):
    run = tmp_path / "run"
    (run / "final").mkdir(parents=True)
    (run / "final/adapter_config.json").write_text("{}")
    assert merging.find_adapter(run) == run / "final"
    assert merging.find_adapter(run / "final") == run / "final"


def test_a_run_that_has_not_ended_cannot_be_merged(tmp_path, capsys):
    (tmp_path / "run/checkpoint-5").mkdir(parents=True)
    with pytest.raises(ModelError, match="has not ended"):
        merging.find_adapter(tmp_path / "run")
    words = ["--base_model", "tiny:llama", "--lora_path", str(tmp_path / "run")]
    words += ["--output_path", str(tmp_path / "merged")]
    assert main(["temporal", "merge", *words]) == 2
    assert "--resume_latest" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def test_an_adapter_is_no_model_to_convert(tmp_path, capsys):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "b"}))
    out = tmp_path / "out.gguf"
    words = ["--model_path", str(tmp_path), "--output_path", str(out)]
    assert main(["temporal", "convert", *words]) == 2
    assert "mud-puppy merge" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("is_built", [True, False])
def test_a_checkout_beside_it_is_used_only_where_it_is_built(is_built, tmp_path, monkeypatch):
    """The document clones llama.cpp and builds nothing; the wheel's code then does it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "llama.cpp" / "build" / "bin"
    folder.mkdir(parents=True)
    if is_built:
        (folder / "llama-quantize").touch()
    given = []
    monkeypatch.setattr(converting, "run_command", lambda *words: given.extend(words[2]) or 0)
    args = parse(converting, "--model_path", "m", "--output_path", "o.gguf")
    converting.run(argparse.Namespace(**args))
    assert ("--llama-cpp-path" in given) == is_built


def test_a_merged_model_that_says_nothing_is_told(monkeypatch, tmp_path):
    class Silent:
        def answer(self, prompts, *, max_tokens):
            del max_tokens
            return [argparse.Namespace(text="  ") for _ in prompts]

    monkeypatch.setattr(merging, "open_local", lambda folder: Silent())
    with pytest.raises(EngineError, match="with nothing"):
        merging._ask(tmp_path)


def test_the_package_is_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mudpuppy.pipelines.temporal", "data", str(tmp_path / "none")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "retain_train.jsonl: does not exist" in done.stderr


def test_nothing_heavy_is_imported_for_help_and_for_bad_records(tmp_path):
    code = (
        "import sys\nfrom mudpuppy.cli import main\n"
        f"assert main(['temporal', 'data', {str(tmp_path)!r}]) == 2\n"
        "print([name for name in ('torch', 'transformers', 'openai') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
