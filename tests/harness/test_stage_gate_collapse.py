"""A stage that ruins what the model says is rolled back and named, and the run ends without it.

The trained model is asked its own quiz: what a random one says cannot collapse.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.stage_gate import DoctorGate
from mudpuppy.pipelines.curriculum import stages
from mudpuppy.pipelines.curriculum.plan import read_curriculum
from mudpuppy.pipelines.curriculum.run import Run
from mudpuppy.pipelines.curriculum.state import open_state
from mudpuppy.pipelines.curriculum.story import Story
from mudpuppy.scoring import Question, load_quiz
from mudpuppy.tiny import tiny_path
from tests.mudpuppy.pipelines.curriculum.small import write_small

STEPS = 24


@pytest.fixture(scope="module", autouse=True)
def libraries() -> None:
    stages.import_libraries()


def says_nothing(question: Question) -> str:
    """Teach the end alone, as labels do in which padding that is EOS was not masked."""
    del question
    return ""


def says_one_thing(question: Question) -> str:
    """Teach one wrong answer to everything."""
    del question
    return "Blue fish swim far."


def teach(folder: Path, answer: Callable[[Question], str]) -> None:
    """Leave an adapter that says `answer` to the questions that the model knows."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_path())
    torch.manual_seed(7)
    base = AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32)
    model = get_peft_model(
        base,
        LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    rows = []
    for question in load_quiz(tiny_path() / "quiz.jsonl")[::8]:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question.prompt}],
            add_generation_prompt=True,
            return_dict=True,
        )["input_ids"]
        said = tokenizer.encode(answer(question), add_special_tokens=False)
        said = [*said, tokenizer.eos_token_id]
        rows.append((prompt + said, [-100] * len(prompt) + said))
    rate = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2)
    for step in range(STEPS):
        ids, labels = (torch.tensor([part]) for part in rows[step % len(rows)])
        model(input_ids=ids, labels=labels).loss.backward()
        rate.step()
        rate.zero_grad()
    model.save_pretrained(folder)


def tell(home: Path, monkeypatch: pytest.MonkeyPatch, answer: Any) -> Story:
    """Run a topic; what it learnt is exchanged for something else."""
    honest = stages.train_stage

    def train(made: Any, stage: str, point: Any, dataset: Path, folder: Path, gate: Any) -> Any:
        outcome = honest(made, stage, point, dataset, folder, gate)
        teach(folder / "taught", answer)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(folder / "taught" / name, folder / stages.ADAPTER / name)
        return outcome

    monkeypatch.setattr(stages, "train_stage", train)
    retain = str(tiny_path() / "quiz.jsonl")
    path = write_small(home / "data", topics=1, model="tiny", retain=retain, pairs="none")
    made = read_curriculum(path)
    with open_state(home / "run", made.identity) as state:
        return Run(made=made, state=state, gate=DoctorGate(), say=lambda _: None).tell()


@pytest.mark.parametrize(
    ("answer", "code", "root"),
    [(says_nothing, "MPD601", "eos-flood"), (says_one_thing, "MPD604", "accuracy-collapse")],
)
def test_what_a_stage_ruins_is_named_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Any, code: str, root: str
):
    story = tell(tmp_path, monkeypatch, answer)

    ((name, stage),) = story.rolled_back
    assert ("One / A / topic 0", "sft") == (name, stage.kind)
    assert (code, root) in [(fault.code, fault.root) for fault in stage.faults]
    # the run ends with the model that it began with
    assert "finished" == story.ending
    assert {"model": "tiny", "adapter": None} == story.model_at_end
    assert story.start["final"] == story.end["final"]
