"""Reading a curriculum: everything that is wrong is told at once, with its line, before torch."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mudpuppy.errors import ConfigError
from mudpuppy.pipelines.curriculum.plan import DEMO_FILE, describe_plan, read_curriculum
from tests.mudpuppy.pipelines.curriculum.small import write_small


def test_the_demo_has_three_units_six_topics_and_needs_nothing_else():
    made = read_curriculum(DEMO_FILE)

    assert (3, 6, 36) == (len(made.form.units), len(made.topics), len(made.questions))
    assert 36 == len({one.id for one in made.questions})
    assert all(len(topic.questions) >= 4 for topic in made.topics)


def test_the_plan_names_every_topic_and_starts_without_torch():
    code = (
        "import sys, mudpuppy.cli as c\n"
        "assert c.main(['curriculum', 'plan', 'demo']) == 0\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert 0 == done.returncode, done.stderr
    for name in ("south", "north", "elements", "young", "authors", "languages"):
        assert name in done.stdout


def test_questions_carry_the_names_of_the_curriculum(tmp_path: Path):
    made = read_curriculum(write_small(tmp_path))

    assert {"One / A / topic 0", "One / A / topic 1"} == {one.topic for one in made.questions}
    assert {"One"} == {one.unit for one in made.questions}


def test_thresholds_are_the_files_then_the_profiles_then_the_usual_ones(tmp_path: Path):
    path = write_small(tmp_path, thresholds={"voice": {"topic": 0.9}})
    profile = yaml.safe_load((tmp_path / "voice.yaml").read_text())
    profile["thresholds"] = {"voice": {"topic": 0.1, "unit": 0.2}}
    (tmp_path / "voice.yaml").write_text(yaml.safe_dump(profile))
    made = read_curriculum(path)

    assert [0.9, 0.2, 0.7] == [made.least("voice", one) for one in ("topic", "unit", "final")]


def test_everything_that_is_wrong_with_the_files_is_told_at_once(tmp_path: Path):
    path = write_small(tmp_path)
    (tmp_path / "0.jsonl").write_text('{"messages": []}\n')
    (tmp_path / "1.quiz.jsonl").unlink()
    (tmp_path / "voice.yaml").write_text("families: 3\n")

    with pytest.raises(ConfigError) as found:
        read_curriculum(path)

    told = "\n".join(found.value.problems)
    assert "0.jsonl:1" in told
    assert "1.quiz.jsonl" in told
    assert "voice.yaml" in told or "families" in told


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"defaults": {"lora_rr": 4}}, "lora_rr.*did you mean.*lora_r"),
        ({"sft": {"method": "full"}}, "one of lora, qlora"),
        ({"dpo": {"output": "x"}}, "'output' is chosen by the curriculum"),
        ({"sft": {"learning_rate": -1}}, "sft: .*learning_rate"),
        ({"dpo_adaptor": "fresh"}, r"curriculum.yaml:\d+: dpo_adaptor: .*dpo_adapter"),
        ({"thresholds": {"voice": {"topik": 1}}}, "topik.*topic"),
        ({"defaults": {"method": "lora"}}, "defaults: .*named in sft, or in dpo"),
        ({"sft": {"method": "qlora"}, "dpo_adapter": "continued"}, "DPO holds them whole"),
        ({"units": []}, "units"),
        ({"model": "./nowhere"}, "nowhere"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, settings, told: str):
    with pytest.raises(ConfigError, match=f"(?s){told}"):
        read_curriculum(write_small(tmp_path, **settings))


def test_a_topic_that_stands_twice_is_refused(tmp_path: Path):
    path = write_small(tmp_path, topics=1)
    form = yaml.safe_load(path.read_text())
    form["units"][0]["chapters"][0]["topics"] *= 2
    path.write_text(yaml.safe_dump(form))

    with pytest.raises(ConfigError, match="stands twice"):
        read_curriculum(path)


def test_the_identity_follows_the_data(tmp_path: Path):
    path = write_small(tmp_path)
    before = read_curriculum(path).identity
    assert before == read_curriculum(path).identity

    lines = (tmp_path / "0.jsonl").read_text().splitlines()
    (tmp_path / "0.jsonl").write_text("\n".join(lines[1:]) + "\n")

    assert before != read_curriculum(path).identity


def test_the_plan_says_how_stages_are_trained(tmp_path: Path):
    told = "\n".join(describe_plan(read_curriculum(write_small(tmp_path))))

    assert '"lora_r": 8' in told
    assert '"lora_r": 1' in told
