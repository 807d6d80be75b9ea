"""Foreign readers: healthy artefacts agree, broken ones are told, what is not there is not run."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from harness.evidence.source import CheckpointEvidence
from harness.facts.trials import Interop, Reading
from harness.findings import Status
from harness.observations import Observations
from harness.registry import load_probes, run_probe
from harness.trials import foreign
from harness.trials.interop import BY_ARTEFACT, InteropOptions, damage, read_in_clean_interpreter
from mudpuppy.tiny import resolve_model

DISAGREES, REFUSES = (
    next(p for p in load_probes() if p.code == code) for code in ("MPD744", "MPD745")
)


def judge(probe: Any, *endings: str):
    readings = tuple(Reading(artefact="merged", reader="r 1.0", ending=e) for e in endings)
    seen = Observations(ending="measured", trial=asdict(Interop(readings=readings)))
    return run_probe(probe, CheckpointEvidence(Path(), given={"observations": seen})).status


def test_each_probe_finds_its_own_fault_and_what_was_not_read_is_no_pass():
    assert Status.PASSED is judge(DISAGREES, "agrees", "not-run")
    assert Status.FAILED is judge(DISAGREES, "agrees", "disagrees")
    assert Status.SKIPPED is judge(DISAGREES, "not-run")
    assert Status.PASSED is judge(REFUSES, "agrees", "disagrees")
    assert Status.FAILED is judge(REFUSES, "agrees", "refused")
    assert Status.SKIPPED is judge(REFUSES, "not-run")


def test_every_reader_of_an_artefact_exists():
    named = {reader for readers in BY_ARTEFACT.values() for reader in readers}

    assert named <= set(foreign.READERS)
    InteropOptions(readers=tuple(foreign.READERS))  # type: ignore[arg-type]


def test_the_foreign_reader_does_not_import_the_engine():
    code = (
        "import sys, harness.trials.foreign\n"
        "sys.exit(' '.join(n for n in sys.modules if n.startswith(('mudpuppy', 'torch'))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert 0 == done.returncode, done.stderr


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A model as another tool saves it, with the logits it gave."""
    base = resolve_model("tiny:llama")
    folder = tmp_path_factory.mktemp("saved")
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    model.save_pretrained(folder)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0].numpy()
    np.savez(folder / "reference.npz", **{"in0.input_ids": ids.numpy(), "plain0": logits})
    return {
        "artefact": "model",
        "folder": str(folder),
        "base": str(base),
        "reference": str(folder / "reference.npz"),
        "auto_class": "AutoModelForCausalLM",
        "settings": {},
        "dtype": "float32",
        "tolerance": 1e-4,
        "why_not": "",
    }


def copy_of(saved: dict[str, Any], folder: Path) -> dict[str, Any]:
    for path in Path(saved["folder"]).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return {**saved, "folder": str(folder)}


def test_transformers_agrees_with_the_same_weights(saved):
    answer = foreign.read({**saved, "reader": "transformers"})

    assert "agrees" == answer["ending"]
    assert answer["difference"] < 1e-5
    assert "agrees" == foreign.read({**saved, "reader": "safetensors"})["ending"]


def test_without_logits_to_compare_with_nothing_agrees(saved, tmp_path: Path):
    np.savez(tmp_path / "empty.npz", ids0=np.zeros(3))
    task = {**saved, "reader": "transformers", "reference": str(tmp_path / "empty.npz")}

    assert "refused" == foreign.read(task)["ending"]


def test_doubled_weights_disagree(saved, tmp_path: Path):
    task = copy_of(saved, tmp_path)
    damage(tmp_path)

    assert "disagrees" == foreign.read({**task, "reader": "transformers"})["ending"]


def test_weights_that_transformers_would_make_up_are_a_refusal(saved, tmp_path: Path):
    task = copy_of(saved, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = foreign_load(path)
    save_file({f"_orig_mod.{k}": v for k, v in tensors.items()}, path, {"format": "pt"})

    answer = foreign.read({**task, "reader": "transformers"})
    assert "refused" == answer["ending"]
    assert "made up" in answer["detail"]


def foreign_load(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: one.clone() for name, one in load_file(path).items()}


def test_a_tensor_that_is_not_finite_is_told(saved, tmp_path: Path):
    task = copy_of(saved, tmp_path)
    tensors = foreign_load(tmp_path / "model.safetensors")
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})

    assert "not finite" in foreign.read({**task, "reader": "safetensors"})["detail"]


def test_a_tokenizer_with_other_ids_disagrees(saved, tmp_path: Path):
    base = Path(saved["base"])
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (base / name).exists():
            (tmp_path / name).write_bytes((base / name).read_bytes())
    task = {**saved, "folder": str(tmp_path), "reader": "tokenizer"}
    assert "agrees" == foreign.read(task)["ending"]

    told = json.loads((tmp_path / "tokenizer.json").read_text())
    told["model"]["merges"] = told["model"]["merges"][:1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(told))
    assert "disagrees" == foreign.read(task)["ending"]


def test_a_card_that_does_not_parse_or_says_nothing_is_told(tmp_path: Path):
    task = {"reader": "card", "folder": str(tmp_path)}
    assert "refused" == foreign.read(task)["ending"]

    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nhello\n")
    assert "disagrees" == foreign.read(task)["ending"]
    (tmp_path / "README.md").write_text("---\nlibrary_name: peft\n---\nhello\n")
    assert "agrees" == foreign.read(task)["ending"]


def test_a_log_that_lacks_a_step_disagrees(tmp_path: Path):
    from torch.utils.tensorboard import SummaryWriter

    steps = tmp_path / "steps.jsonl"
    lines = [json.dumps({"step": n, "loss": 1.0 / n}) for n in (1, 2, 3)]
    writer = SummaryWriter(str(tmp_path / "runs"))
    for n in (1, 2, 3):
        writer.add_scalar("train/loss", 1.0 / n, n)
    writer.close()
    task = {"reader": "tensorboard", "folder": str(tmp_path), "steps": str(steps)}

    steps.write_text("\n".join(lines))
    assert "agrees" == foreign.read(task)["ending"]
    steps.write_text("\n".join([*lines, json.dumps({"step": 4, "loss": 0.25})]))
    assert "disagrees" == foreign.read(task)["ending"]
    steps.write_text("\n".join([*lines[:2], json.dumps({"step": 3, "loss": 0.5})]))
    assert "disagrees" == foreign.read(task)["ending"]


def test_what_is_not_exported_or_not_installed_is_not_run(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(foreign.READERS, "gguf", ("packaging", foreign._gguf))
    answer = foreign.read({"reader": "gguf", "folder": str(tmp_path)})
    assert ("not-run", "the engine exports no GGUF yet") == (answer["ending"], answer["detail"])

    monkeypatch.setitem(foreign.READERS, "gguf", ("no-such-package", foreign._gguf))
    assert "not installed" in foreign.read({"reader": "gguf"})["detail"]


def test_a_reader_that_dies_is_named_and_the_others_go_on(tmp_path: Path):
    fake = tmp_path / "python"
    fake.write_text(
        f"#!{sys.executable}\n"
        "import json, os, signal, sys\n"
        "tasks, out = json.load(open(sys.argv[3])), open(sys.argv[4], 'a')\n"
        "for n, task in enumerate(tasks):\n"
        "    print(json.dumps({'number': n, 'started': True}), file=out, flush=True)\n"
        "    if task['reader'] == 'bad':\n"
        "        os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    told = {'number': n, 'reader': task['reader'], 'ending': 'agrees'}\n"
        "    print(json.dumps(told), file=out, flush=True)\n"
    )
    fake.chmod(0o755)
    tasks = [
        {"artefact": "a", "reader": name, "why_not": "no kernel" if name == "never" else ""}
        for name in ("good", "bad", "never", "late")
    ]

    found = read_in_clean_interpreter(tasks, tmp_path, str(fake))

    assert ["agrees", "refused", "not-run", "agrees"] == [one.ending for one in found]
    assert "signal 11" in found[1].detail
    assert "no kernel" == found[2].detail


def test_a_reader_that_dies_after_its_last_answer_is_a_refusal(tmp_path: Path):
    fake = tmp_path / "python"
    fake.write_text(
        f"#!{sys.executable}\n"
        "import json, os, signal, sys\n"
        "told = {'number': 0, 'reader': 'good', 'ending': 'agrees'}\n"
        "with open(sys.argv[4], 'a') as out:\n"
        "    print(json.dumps(told), file=out)\n"
        "os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    fake.chmod(0o755)

    tasks = [{"artefact": "a", "reader": "good", "why_not": ""}]
    (found,) = read_in_clean_interpreter(tasks, tmp_path, str(fake))

    assert ("refused", "the reader ended by signal 11") == (found.ending, found.detail)


@pytest.mark.parametrize(
    ("message", "ending"),
    [
        ("Loading a GPTQ quantized model requires gptqmodel", "not-run"),
        ("GPU is required to quantize or run quantize model.", "not-run"),
        ("a leaf that requires grad is being used in an in-place operation", "refused"),
    ],
)
def test_only_missing_kernels_are_not_run(message, ending, monkeypatch):
    def fail(*_):
        raise RuntimeError(message)

    monkeypatch.setattr(foreign, "_open", fail)

    assert ending == foreign.read({"reader": "gptq", "folder": "x"})["ending"]
