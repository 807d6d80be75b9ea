"""The class that is told without torch is the one that AutoTokenizer takes."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from mudpuppy.export.gguf.tokenizer_class import MODULES, REGISTERED, known_class, load_class
from tests.mudpuppy.export.gguf.folders import save_byte_level, write_json

STATED = ("PreTrainedTokenizerFast", "TokenizersBackend", "Qwen2TokenizerFast", "GemmaTokenizer")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_byte_level(
        tmp_path_factory.mktemp("t") / "m", pre_tokenizers.ByteLevel(False), size=300
    )


@pytest.mark.parametrize("family", REGISTERED)
@pytest.mark.parametrize("stated", STATED)
def test_the_choice_is_auto_tokenizers(family, stated, folder):
    settings, config = {"tokenizer_class": stated}, {"model_type": family}
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "config.json", config)
    name = known_class(settings, config)
    assert type(AutoTokenizer.from_pretrained(folder)) is load_class(name)


@pytest.mark.parametrize(
    ("settings", "config"),
    [
        ({}, {"model_type": "llama"}),
        ({"tokenizer_class": "LlamaTokenizer"}, {"model_type": "llama"}),
        ({"tokenizer_class": "TokenizersBackend"}, {}),
        ({"tokenizer_class": "TokenizersBackend"}, {"model_type": "mistral"}),
        ({"tokenizer_class": "TokenizersBackend", "auto_map": {}}, {"model_type": "llama"}),
        ({"tokenizer_class": 3}, {"model_type": []}),
    ],
)
def test_the_rest_is_left_to_auto_tokenizer(settings, config):
    assert known_class(settings, config) is None


def test_no_class_needs_torch():
    code = f"import sys, importlib\nfor m in {list(MODULES.values())}: importlib.import_module(m)\n"
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
