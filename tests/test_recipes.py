"""The LoRA workflow of docs/recipes.md runs from top to bottom, on the embedded model."""

import json
import re
import shlex
from pathlib import Path

import pytest

from mudpuppy.cli import main

PAGE = Path(__file__).parents[1] / "docs/recipes.md"
SMALLER = {"--preset": ["--max-steps", "2", "--precision", "fp32", "--device", "cpu"]}
"""What a run on the embedded model adds to a preset for a card."""


def commands():
    text = PAGE.read_text(encoding="utf-8").partition("## LoRA")[2]
    return [shlex.split(one) for one in re.findall(r"^```sh\n(.*?)\n```", text, re.M | re.S)]


def test_every_command_of_the_lora_recipe_works(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    rows = [{"instruction": f"q{i}", "input": "x", "output": "It eats worms."} for i in range(32)]
    Path("data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ran = []
    for program, *words in commands():
        words = ["tiny:llama" if word == "MODEL" else word for word in words]
        if program == "mudpuppy-doctor":
            from reports.commands.doctor import main as doctor

            assert doctor(words) in (0, 1), words  # a random model: findings are no surprise
            continue
        is_training = words[0] == "tiny:llama"
        assert 0 == main([*words, *(SMALLER["--preset"] if is_training else [])]), words
        ran.append(words[0])
    assert ["data", "estimate", "tiny:llama", "merge"] == ran
    assert 'SYSTEM """You keep a pond."""' in Path("out/merged/Modelfile").read_text()
    assert 'SYSTEM """You keep a pond."""' in Path("merged/Modelfile").read_text()
    said = json.loads(Path("out/mudpuppy.json").read_text())["run"]["choices"]["preset"]
    assert "lora-14b-16gb" == said["value"]
    assert "tensorboard --logdir out/runs" in capsys.readouterr().out
