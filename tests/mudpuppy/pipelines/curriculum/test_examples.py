"""A voice with examples: whether they count is said, and a model that cannot measure them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from mudpuppy.cli import main
from mudpuppy.errors import ConfigError
from mudpuppy.pipelines.curriculum.gates import Examined, Verdict
from mudpuppy.pipelines.curriculum.plan import describe_plan, read_curriculum
from mudpuppy.similarity import NEUTRAL
from tests.mudpuppy.pipelines.curriculum.small import VOICE, write_small
from tests.mudpuppy.small_embedder import save_embedder

EXAMPLES = ["Ahoy, the tide is high.", "Ahoy, the keel is dry.", "The tide turns, ahoy."]


def write(home: Path, **settings) -> Path:
    path = write_small(home, topics=1, **settings)
    voice = VOICE | {"similarity": {"examples": EXAMPLES, "weight": 2}}
    (home / "voice.yaml").write_text(yaml.safe_dump(voice))
    return path


def test_the_plan_says_that_examples_do_not_count_without_a_model(tmp_path):
    made = read_curriculum(write(tmp_path))
    (line,) = [one for one in describe_plan(made) if "examples" in one]
    assert "by its markers alone: its 3 examples do not count" in line
    assert not [
        one
        for one in describe_plan(read_curriculum(write_small(tmp_path / "b")))
        if "examples" in one
    ]


def test_what_is_no_model_and_a_voice_without_examples_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no modules\.json"):
        read_curriculum(write(tmp_path / "a", embeddings="nowhere"))
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "modules.json").write_text("[]")
    with pytest.raises(ConfigError, match="no voice profile with `similarity`"):
        read_curriculum(write_small(tmp_path / "b"), tmp_path / "m")


def test_the_model_is_found_beside_the_file_and_is_part_of_the_identity(tmp_path):
    path = write(tmp_path, embeddings="m")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "modules.json").write_text("[]")
    made = read_curriculum(path)
    assert made.embeddings == (tmp_path / "m").resolve()
    assert any("nearness to 3 examples counts in the voice, by m" in x for x in describe_plan(made))
    (tmp_path / "m" / "weights").write_bytes(b"other")
    assert read_curriculum(path).identity != made.identity


def run(path: Path, output: Path, *words: str) -> int:
    gate = f"{__name__}:Looks"
    return main(["curriculum", "run", str(path), "--output", str(output), "--gate", gate, *words])


class Looks:
    """A gate that tells which embedding model it was shown."""

    def watch(self, folder: Path) -> None:
        del folder

    def judge(self, stage: Examined) -> Verdict:
        shown = "" if stage.embeddings is None else stage.embeddings.name
        return Verdict(checked=1, remarks=(f"embeddings {shown}",))


def test_the_scores_of_a_run_hold_the_nearness_or_say_that_they_do_not(tmp_path, capsys):
    pytest.importorskip("sentence_transformers", reason="pip install 'mudpuppy[embeddings]'")
    path = write(tmp_path, thresholds={"accuracy": {"topic": 1.0}})
    run(path, tmp_path / "without")
    assert "its 3 examples do not count" in capsys.readouterr().out
    told = (tmp_path / "without" / "report.md").read_text()
    assert "The voice is scored by its markers alone" in told

    embedder = save_embedder(tmp_path / "m", [*EXAMPLES, *NEUTRAL])
    run(path, tmp_path / "with", "--embeddings", str(embedder))
    assert "nearness to 3 examples counts in the voice" in capsys.readouterr().out
    told = json.loads((tmp_path / "with" / "report.json").read_text())
    assert told["topics"][0]["stages"][0]["verdict"]["remarks"] == ["embeddings m"]
    assert "counts in the voice" in told["examples"]
    # what a random model says has no marker, and stands somewhere between voice and neutral texts
    assert (
        told["start"]["final"]["voice"]
        != json.loads((tmp_path / "without" / "report.json").read_text())["start"]["final"]["voice"]
    )


def test_a_model_that_does_not_hear_the_voice_ends_before_anything_is_trained(tmp_path, capsys):
    pytest.importorskip("sentence_transformers", reason="pip install 'mudpuppy[embeddings]'")
    dead = save_embedder(tmp_path / "dead", NEUTRAL, dead=True)
    assert run(write(tmp_path), tmp_path / "run", "--embeddings", str(dead)) == 3
    assert "not from neutral texts" in capsys.readouterr().err
    assert not (tmp_path / "run" / "phases" / "01.sft").exists()
