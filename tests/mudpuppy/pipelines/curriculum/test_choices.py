"""What a curriculum may choose: pairs of what the model says, NF4 under SFT, a quiz to retain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from mudpuppy.cli import main
from mudpuppy.errors import ConfigError
from mudpuppy.pipelines.curriculum import stages
from mudpuppy.pipelines.curriculum.gates import Examined, Verdict
from mudpuppy.pipelines.curriculum.plan import read_curriculum
from mudpuppy.pipelines.curriculum.quizzes import gate_questions
from mudpuppy.pipelines.curriculum.run import Run
from mudpuppy.pipelines.curriculum.state import open_state
from mudpuppy.pipelines.curriculum.story import Story
from mudpuppy.scoring import load_quiz
from mudpuppy.tiny import resolve_model
from tests.mudpuppy.pipelines.curriculum.small import ASKED, write_small

KNOWN = {"id": "k", "prompt": "What is ice?", "answer": "Water.", "topic": "known", "kind": "fact"}


class Listens:
    """A gate that refuses nothing and writes down what it was to ask."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def watch(self, folder: Path) -> None:
        del folder

    def judge(self, stage: Examined) -> Verdict:
        assert stage.quiz is not None
        asked = [question.prompt for question in load_quiz(stage.quiz)]
        # in a child of the run: what it learns must lie in a file
        (self.folder / f"{stage.kind}.json").write_text(json.dumps(asked))
        return Verdict(checked=1)


@pytest.fixture(scope="module", autouse=True)
def libraries() -> None:
    stages.import_libraries()


def tell(path: Path, output: Path, gate: Any = None) -> Story:
    made = read_curriculum(path)
    with open_state(output, made.identity) as state:
        return Run(made=made, state=state, gate=gate, say=lambda _: None).tell()


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_gate_asks_what_must_be_retained_beside_the_topics(tmp_path: Path):
    path = write_small(tmp_path / "data", topics=1, retain="known.jsonl")
    (path.parent / "known.jsonl").write_text(json.dumps(KNOWN) + "\n")

    story = tell(path, tmp_path / "run", Listens(tmp_path))

    assert "finished" == story.ending
    for kind in ("sft", "dpo", "merge"):
        asked = json.loads((tmp_path / f"{kind}.json").read_text())
        assert len(ASKED) + 1 == len(asked)
        assert KNOWN["prompt"] == asked[-1]
    # it judges, and is no part of what the curriculum teaches
    assert len(ASKED) == story.start["final"]["questions"]


def test_what_must_be_retained_comes_before_what_nobody_knows_yet(tmp_path: Path):
    path = write_small(tmp_path, topics=2, retain="known.jsonl")
    (tmp_path / "known.jsonl").write_text(json.dumps(KNOWN) + "\n")
    made = read_curriculum(path)

    asked = [one.id for one in gate_questions(made, "01.sft")]
    assert [*(f"01-{name}" for name in ASKED), "k", *(f"02-{name}" for name in ASKED)] == asked


def test_a_quiz_to_retain_that_cannot_be_read_is_told_before_anything_is_trained(tmp_path: Path):
    path = write_small(tmp_path, retain="known.jsonl")
    with pytest.raises(ConfigError, match=r"known\.jsonl"):
        read_curriculum(path)

    (tmp_path / "known.jsonl").write_text('{"id": "k"}\n')
    with pytest.raises(ConfigError, match=r"known\.jsonl"):
        read_curriculum(path)


def test_another_quiz_to_retain_is_another_curriculum(tmp_path: Path):
    path = write_small(tmp_path, retain="known.jsonl")
    (tmp_path / "known.jsonl").write_text(json.dumps(KNOWN) + "\n")
    before = read_curriculum(path).identity
    (tmp_path / "known.jsonl").write_text(json.dumps(KNOWN | {"answer": "Snow."}) + "\n")

    assert before != read_curriculum(path).identity


def test_pairs_of_the_models_own_answers_are_trained_on(tmp_path: Path):
    story = tell(write_small(tmp_path / "data", topics=1, pairs="model"), tmp_path / "run")

    assert [("sft", True), ("merge", True), ("dpo", True), ("merge", True)] == [
        (stage.kind, stage.kept) for stage in story.topics[0].stages
    ]
    rows = read_rows(tmp_path / "run/phases/01.pairs/pairs.jsonl")
    answers = {row["text"] for row in read_rows(tmp_path / "run/phases/01.sft.asked/answers.jsonl")}
    # the model that was asked is the one that SFT left, and it says the same again
    assert rows
    assert {row["rejected"][0]["content"] for row in rows} <= answers
    assert all(row["chosen"][0]["content"].startswith("Ahoy, ") for row in rows)


def test_the_command_rejects_what_a_model_says(tmp_path: Path, capsys):
    write_small(tmp_path, topics=1)
    words = [str(tmp_path / name) for name in ("0.jsonl", "voice.yaml", "pairs.jsonl")]

    assert 0 == main(["curriculum", "pairs", *words, "--model", "tiny:llama"])
    assert f"pairs of {len(ASKED)} questions" in capsys.readouterr().out
    rows = read_rows(tmp_path / "pairs.jsonl")
    said = stages.ask_model("tiny:llama", None, [row["prompt"][0]["content"] for row in rows])
    assert [text for text, _ in said] == [row["rejected"][0]["content"] for row in rows]


def test_a_model_that_is_not_there_writes_no_pairs(tmp_path: Path, capsys):
    write_small(tmp_path, topics=1)
    words = [str(tmp_path / name) for name in ("0.jsonl", "voice.yaml", "pairs.jsonl")]

    assert 2 == main(["curriculum", "pairs", *words, "--model", str(tmp_path / "nowhere")])
    assert "nowhere" in capsys.readouterr().err
    assert not (tmp_path / "pairs.jsonl").exists()


def test_sft_on_a_base_in_4_bits_ends_in_whole_weights(tmp_path: Path):
    story = tell(
        write_small(tmp_path / "data", topics=1, sft={"method": "qlora"}), tmp_path / "run"
    )

    assert ("finished", []) == (story.ending, story.rolled_back)
    ran = json.loads((tmp_path / "run/phases/01.sft/adapter/run.json").read_text())
    assert ("qlora", 4) == (ran["method"], ran["quantisation"]["bits"])
    final = tmp_path / "run" / "final"
    assert "quantization_config" not in json.loads((final / "config.json").read_text())
    tensors = load_file(final / "model.safetensors")
    base = load_file(Path(resolve_model("tiny:llama")) / "model.safetensors")
    assert {name: one.shape for name, one in base.items()} == {
        name: one.shape for name, one in tensors.items()
    }
    assert any(not one.equal(base[name]) for name, one in tensors.items())
