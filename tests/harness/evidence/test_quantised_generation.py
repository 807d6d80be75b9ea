"""With --generate our own GPTQ and int8 folders are asked, without any other package."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.doctor import Judging, diagnose
from harness.evidence.behaviour.models import load_model
from harness.findings import Verdict
from mudpuppy.config_check import load_config
from mudpuppy.engine import train
from mudpuppy.quant.int8 import Int8Linear, quantise_weights, save_int8
from mudpuppy.tiny import resolve_model
from reports.commands.doctor import main
from tests.harness.checkpoints import edit_json

ANSWERS = ("It eats worms.", "No.", "At night, when the water is cold.", "In the pond.")
HERE = Judging(in_process=True)


@pytest.fixture(scope="module")
def tiny():
    return Path(resolve_model("tiny"))


@pytest.fixture(scope="module")
def output(tiny, tmp_path_factory):
    """What the engine leaves of a GPTQ run."""
    folder = tmp_path_factory.mktemp("gptq")
    rows = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": a}]}
        for n, a in enumerate(ANSWERS * 3)
    ]
    (folder / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = {"model": str(tiny), "dataset": folder / "chat.jsonl", "output": folder / "out"}
    more = {"gptq_group_size": 32, "calibration_samples": 8, "precision": "fp32"}
    train(load_config({**settings, **more, "method": "gptq"}))
    return folder / "out"


@pytest.fixture(scope="module")
def int8(tiny, tmp_path_factory):
    """The int8 form of the tiny model."""
    folder = tmp_path_factory.mktemp("int8") / "int8"
    model = AutoModelForCausalLM.from_pretrained(tiny)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    save_int8(model, tokenizer, folder, quantise_weights(model), torch.float32)
    return folder


@pytest.mark.parametrize("kind", ["gptq", "int8"])
def test_a_folder_of_ours_answers_the_quiz_as_its_base_does(tiny, output, int8, kind):
    folder = output / "gptq" if kind == "gptq" else int8

    found = diagnose(folder, HERE, base=tiny, generate=True, quiz=tiny / "quiz.jsonl")

    assert found.verdict is Verdict.HEALTHY, found.why
    (subject,) = found.facts["subjects"]
    assert "accuracy" in subject["answers"]
    assert {"passed"} == {str(r.status) for r in found.probes if r.code in ("MPD601", "MPD608")}


def test_the_output_of_a_run_is_asked_from_the_command_line(output, capsys):
    assert main([str(output), "--generate", "--select", "MPD601,MPD606"]) == 0
    assert "HEALTHY" in capsys.readouterr().out


def test_both_open_to_the_layers_that_stand_for_them(output, int8):
    packed = load_file(output / "gptq" / "model.safetensors")
    assert any(name.endswith(".qweight") for name in packed)

    plain = load_model(output / "gptq").model
    assert not [name for name, _ in plain.named_buffers() if "qweight" in name]
    assert sum(isinstance(m, Int8Linear) for m in load_model(int8).model.modules()) == 28


def test_a_damaged_folder_is_no_sign_of_health(output, tiny, tmp_path):
    folder = shutil.copytree(output / "gptq", tmp_path / "gptq")
    state = load_file(folder / "model.safetensors")
    del state[next(name for name in state if name.endswith(".scales"))]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    found = diagnose(folder, HERE, base=tiny, generate=True, select=["MPD601"])

    assert found.verdict is Verdict.UNKNOWN
    assert "gptq could not be" in found.probes[0].reason
    assert "MP-Q02" in found.probes[0].reason


@pytest.mark.parametrize("named", [["pipeline"], ["AutoConfig"], [], ["os.system"]])
def test_a_name_that_is_no_model_is_not_looked_up(output, tmp_path, named):
    folder = shutil.copytree(output / "gptq", tmp_path / "gptq")
    edit_json(folder / "config.json", architectures=named)

    found = diagnose(folder, HERE, generate=True, select=["MPD601"])

    assert found.verdict is Verdict.UNKNOWN
    assert "names no class of transformers" in found.probes[0].reason
