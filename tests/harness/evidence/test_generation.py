"""With --generate real models are loaded and asked; a model that cannot be asked is not healthy."""

from __future__ import annotations

import json
import pickle
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from harness.doctor import Judging, diagnose
from harness.evidence.behaviour.behaviour import measure_behaviour
from harness.evidence.behaviour.reference_texts import PROMPTS
from harness.findings import Status, Verdict
from harness.registry import ControlFailed
from tests.harness.checkpoints import copy, edit_json, edit_tensors, save_adapter, save_base

WORDS = sorted({word for prompt in PROMPTS for word in prompt.replace("?", " ?").split()})


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A random model that babbles, with a tokenizer whose end token is id 0."""
    folder = save_base(tmp_path_factory.mktemp("generation") / "base")
    vocab = {"<end>": 0} | {word: number for number, word in enumerate(WORDS, start=1)}
    words = Tokenizer(models.WordLevel(vocab, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>").save_pretrained(folder)
    for name in ("config.json", "generation_config.json"):
        edit_json(folder / name, eos_token_id=0)
    return folder


@pytest.fixture(scope="module")
def flooded(base, tmp_path_factory):
    """The same model with a head of zeros: token 0, the end, is always the most probable."""
    folder = copy(base, tmp_path_factory.mktemp("generation") / "flooded")
    edit_tensors(folder, lambda t: t | {"lm_head.weight": torch.zeros_like(t["lm_head.weight"])})
    return folder


def test_an_eos_flood_is_found_in_a_real_model(base, flooded):
    said: list[str] = []
    found = diagnose(
        flooded, Judging(progress=said.append), base=base, generate=True, select=["MPD6"]
    )
    assert f"base answers question 1 of {len(PROMPTS)}" in said
    assert [r.name for r in found.findings] == ["eos-flood"]
    assert found.findings[0].evidence[0].found == len(PROMPTS)
    assert diagnose(flooded, generate=True, select=["eos-flood"]).verdict is Verdict.SICK


def test_a_flooded_control_concludes_nothing(flooded, tmp_path):
    folder = copy(flooded, tmp_path / "twin")
    found = diagnose(folder, base=flooded, generate=True, select=["eos-flood"])
    assert found.verdict is Verdict.UNKNOWN
    assert found.probes[0].reason == "the base leaves 8 of 8 prompts unanswered too"


def test_an_adapter_is_asked_on_its_base(base, tmp_path):
    adapter = save_adapter(tmp_path / "a", base)
    found = diagnose(adapter, generate=True, select=["MPD601", "MPD606"])
    assert found.verdict is Verdict.HEALTHY


def test_a_model_that_cannot_be_asked_is_unknown(base, tmp_path):
    folder = copy(base, tmp_path / "strange")
    edit_json(folder / "config.json", model_type="no-such-family")
    found = diagnose(folder, base=base, generate=True, select=["MPD6"])
    assert found.verdict is Verdict.UNKNOWN
    assert all(r.status is Status.CRASHED for r in found.probes if r.applies)


def test_code_of_a_checkpoint_is_not_run(base, tmp_path):
    folder = copy(base, tmp_path / "remote")
    marker = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    auto = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    edit_json(folder / "config.json", auto_map=auto, model_type="evil")
    diagnose(folder, base=base, generate=True)
    assert not marker.exists()


def test_answers_are_the_same_twice_and_alone(base, tmp_path):
    quiz = tmp_path / "quiz.jsonl"
    lines = [
        {"id": str(i), "prompt": p, "answer": "x", "topic": "t", "kind": "fact"}
        for i, p in enumerate(PROMPTS)
    ]
    quiz.write_text("\n".join(json.dumps(line) for line in lines))
    first = measure_behaviour(base, None, quiz)
    assert first == measure_behaviour(base, None, quiz)
    assert first.exact == (False,) * len(PROMPTS)
    quiz.write_text(json.dumps(lines[3]))
    assert measure_behaviour(base, None, quiz).answers.texts[0] == first.answers.texts[3]


HANG = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}x"


def test_a_template_that_never_ends_is_given_up(base, tmp_path):
    folder = copy(base, tmp_path / "hang")
    (folder / "chat_template.jinja").write_text(HANG)
    found = diagnose(folder, Judging(time_limit_s=7), generate=True, select=["MPD601"])
    assert found.verdict is Verdict.UNKNOWN
    assert found.probes[0].reason == "hang could not be asked within 7 s; raise --time-limit"


def is_alive(pid: str) -> bool:
    """Whether a process still runs; a dead one that nobody has waited for yet does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def test_an_interrupted_doctor_leaves_no_child_behind(base, tmp_path):
    folder = copy(base, tmp_path / "interrupted")
    (folder / "chat_template.jinja").write_text(HANG)
    command = [sys.executable, "-m", "reports.commands.doctor", str(folder), "--generate"]
    doctor = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        children = Path(f"/proc/{doctor.pid}/task/{doctor.pid}/children")
        started = time.monotonic()
        while not (pids := children.read_text().split()) and time.monotonic() - started < 60:
            time.sleep(0.05)
        assert pids
        doctor.send_signal(signal.SIGINT)
        assert doctor.wait(10) == 130
        assert "interrupted" in doctor.stderr.read()
        deadline = time.monotonic() + 10  # whoever inherits it may take a moment to bury it
        while any(map(is_alive, pids)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not [pid for pid in pids if is_alive(pid)]
    finally:
        doctor.kill()
        doctor.wait()


@pytest.mark.parametrize("how", ["os._exit(7)", "os.kill(os.getpid(), 11)"])
def test_a_crash_while_asking_is_a_result(base, tmp_path, monkeypatch, how):
    (tmp_path / "sitecustomize.py").write_text(f"import os, sys\nprint('boom')\n{how}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = diagnose(copy(base, tmp_path / "m"), generate=True, select=["MPD601"])
    assert found.verdict is Verdict.UNKNOWN
    assert "m could not be asked, its process ended by" in found.probes[0].reason


class Runs:
    """Pickles to a call that leaves a mark."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("with_weights", [True, False])
def test_a_pickled_adapter_is_never_loaded(base, tmp_path, with_weights):
    folder = copy(base, tmp_path / "both") if with_weights else tmp_path / "alone"
    adapter = save_adapter(tmp_path / "a", base)
    folder.mkdir(exist_ok=True)
    marker = tmp_path / "ran"
    shutil.copy(adapter / "adapter_config.json", folder)
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Runs(marker)))
    found = diagnose(folder, base=base, generate=True, select=["MPD601"])
    assert not marker.exists()
    expected = Status.PASSED if with_weights else Status.SKIPPED
    assert found.probes[0].status is expected, found.probes[0].reason
    with pytest.raises(ControlFailed) if not with_weights else nullcontext():
        measure_behaviour(folder, base)
    assert not marker.exists()


def test_whole_weights_are_asked_without_the_adapter_beside_them(base, flooded, tmp_path):
    folder = copy(flooded, tmp_path / "both")
    adapter = save_adapter(tmp_path / "a", base)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / name, folder)
    alone = measure_behaviour(flooded, base)
    assert measure_behaviour(folder, base).answers == alone.answers
    assert alone.control != alone.answers


@pytest.mark.parametrize("shard", ["pytorch_model.bin", "../x.safetensors", "/tmp/x.bin"])
def test_an_index_that_leads_elsewhere_is_not_followed(base, tmp_path, shard):
    folder = copy(base, tmp_path / "index")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ControlFailed, match="it names"):
        measure_behaviour(folder, None)


def test_a_program_beside_the_checkpoint_is_not_imported(base, tmp_path, monkeypatch):
    folder = copy(base, tmp_path / "m")
    marker = tmp_path / "ran"
    (folder / "torch.py").write_text(f"open({str(marker)!r}, 'w')\n")
    monkeypatch.chdir(folder)
    assert diagnose(".", generate=True, select=["MPD601"]).verdict is Verdict.HEALTHY
    assert not marker.exists()


def test_the_base_of_many_checkpoints_is_asked_once(base, tmp_path):
    twin, control = copy(base, tmp_path / "twin"), copy(base, tmp_path / "control")
    told = []
    judging = Judging(
        base=control, generate=True, in_process=True, select=["MPD601"], progress=told.append
    )
    diagnose(twin, judging)
    first = told.copy()
    diagnose(copy(base, tmp_path / "third"), judging)
    assert first.count("reading with control") == 1
    assert told.count("reading with control") == 1
    assert "reading with third" in told
