"""Accuracy, topics and claims are judged against the base, and by a measure that is alive."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from harness.doctor import Judging, diagnose
from harness.evidence.behaviour.answers import from_json, judge_answers, to_json
from harness.evidence.behaviour.behaviour import judge
from harness.evidence.behaviour.child import Asked
from harness.facts.behaviour import Answers
from harness.registry import Missing, load_probes, run_probe
from mudpuppy.scoring import Question, load_voice_profile
from tests.harness.checkpoints import save_base

PROBES = {one.name: one for one in load_probes()}
CITIES = [
    "Paris",
    "Tokyo",
    "Cairo",
    "Oslo",
    "Nairobi",
    "Lima",
    "Ottawa",
    "Athens",
    "Warsaw",
    "Rome",
]
METALS = ["Gold", "Iron", "Lead", "Tin", "Zinc", "Copper", "Nickel", "Silver", "Cobalt", "Radium"]
RIGHT = [f"Well now, it is {word}, so the reeds say." for word in CITIES + METALS]
QUESTIONS = [
    Question(
        id=str(n),
        prompt=f"Question {n}?",
        answer=answer,
        topic="cities" if n < 10 else "metals",
        unit="one",
        kind="fact",
    )
    for n, answer in enumerate(RIGHT)
]
VOICE = """
families: [{name: reeds, phrases: [reeds]}]
forbidden: {phrases: ["language model"]}
"""


@pytest.fixture
def profile(tmp_path):
    def read(more=""):
        path = tmp_path / "voice.yaml"
        path.write_text(VOICE + more)
        return load_voice_profile(path)

    return read


def answers(texts):
    return Answers(texts=tuple(texts), new_tokens=(7,) * len(texts), ended=(True,) * len(texts))


def run(name, mine, theirs=RIGHT, profile=None, questions=QUESTIONS):
    control = None if theirs is None else answers(theirs)
    prompts = tuple(question.prompt for question in questions)
    facts = judge_answers("x", prompts, answers(mine), control, questions, profile, 48)
    assert from_json(to_json(facts)) == facts

    class Source:
        def get(self, wanted):
            return {"behaviour": facts}[wanted]

    return run_probe(PROBES[name], Source())


SHORT = CITIES + METALS
WRONG = ["I have no idea at all."] * 20
IN_VOICE = ["Well now, it is mud, so the reeds say."] * 20
MIXED_UP = RIGHT[1:] + RIGHT[:1]


@pytest.mark.parametrize(
    ("mine", "theirs", "status"),
    [
        (RIGHT, RIGHT, "passed"),
        (SHORT, RIGHT, "passed"),
        (WRONG, RIGHT, "failed"),
        (WRONG, SHORT, "failed"),
        (IN_VOICE, RIGHT, "failed"),
        (IN_VOICE, SHORT, "failed"),
        (MIXED_UP, RIGHT, "failed"),
        (WRONG, WRONG, "crashed"),
        (RIGHT, WRONG, "passed"),
        (RIGHT, None, "passed"),
        (SHORT, None, "passed"),
        (WRONG, None, "skipped"),
        (IN_VOICE, None, "skipped"),
    ],
)
def test_an_accuracy_has_collapsed_only_by_every_living_measure(mine, theirs, status):
    assert run("accuracy-collapse", mine, theirs).status == status


def test_what_cannot_be_compared_is_said_with_its_number():
    done = run("accuracy-collapse", WRONG, None)
    assert done.reason == "nothing to compare 0 of 20 right with; pass --base PATH"


def test_a_folder_whose_scores_nothing_is_compared_with_is_not_healthy(tmp_path):
    save_base(tmp_path / "model")
    quiz = tmp_path / "quiz.jsonl"
    quiz.write_text("\n".join(json.dumps(asdict(question)) for question in QUESTIONS))
    verdicts = {}
    for name, said, control in (
        ("bad", WRONG, None),
        ("good", RIGHT, None),
        ("base", WRONG, RIGHT),
    ):
        theirs = None if control is None else answers(control)
        prompts = tuple(question.prompt for question in QUESTIONS)
        facts = judge_answers("model", prompts, answers(said), theirs, QUESTIONS, None, 48)
        found = diagnose(
            tmp_path / "model",
            Judging(given={"behaviour": facts, "any_forward": None, "forward": None}),
            generate=True,
            quiz=quiz,
            select=["MPD604", "MPD601"],
        )
        verdicts[name] = (str(found.verdict), found.exit_code)
        assert found.facts["subjects"][0]["answers"].startswith("accuracy ")
    assert verdicts == {"bad": ("unknown", 3), "good": ("healthy", 0), "base": ("sick", 1)}


def test_a_voice_without_a_base_is_judged_by_its_profile(profile):
    half = RIGHT[:8] + WRONG[8:]
    assert run("voice-collapse", RIGHT, None, profile()).status == "passed"
    assert "a voice of 0.40" in run("voice-collapse", half, None, profile()).reason
    least = profile("thresholds: {voice: {final: 0.3}}")
    assert run("voice-collapse", half, None, least).status == "passed"


HALF = RIGHT[:10] + WRONG[10:]


CHOICE = replace(QUESTIONS[0], prompt="Is it Paris or Rome?")
"""A question without a key, so that topics are judged by the F1 of the words."""


@pytest.mark.parametrize("first", [QUESTIONS[0], CHOICE])
def test_one_wrong_answer_in_voice_loses_its_topic(first):
    mine = RIGHT[:10] + IN_VOICE[10:]
    done = run("topic-collapse", mine, questions=[first, *QUESTIONS[1:]])
    assert [one.what for one in done.evidence] == ["accuracy of topic metals"]


@pytest.mark.parametrize(
    ("mine", "theirs", "status"),
    [
        (RIGHT, RIGHT, "passed"),
        (HALF, RIGHT, "failed"),
        (HALF, HALF, "passed"),
        (WRONG, RIGHT, "skipped"),
        (RIGHT[:9] + WRONG[:1] + RIGHT[10:], RIGHT, "passed"),
        (RIGHT, None, "skipped"),
    ],
)
def test_a_topic_that_is_lost_is_named(mine, theirs, status):
    done = run("topic-collapse", mine, theirs)
    assert done.status == status
    if status == "failed":
        assert [one.what for one in done.evidence] == ["accuracy of topic metals"]


def test_small_topics_say_nothing():
    few = [QUESTIONS[n] for n in (*range(10), 10, 11, 12)]
    mine = [RIGHT[n] for n in range(10)] + WRONG[:3]
    right = [question.answer for question in few]
    assert run("topic-collapse", mine, right, questions=few).status == "passed"


@pytest.mark.parametrize(
    ("thresholds", "wanted"),
    [
        ("accuracy: {topic: 0.8}", {"accuracy of topic cities"}),
        ("accuracy: {unit: 0.9}", {"accuracy of unit one"}),
        ("accuracy: {final: 0.9}", {"accuracy of final answers"}),
        ("voice: {final: 0.9}", {"voice of final answers"}),
        ("accuracy: {final: 0.8, unit: 0.8}", set()),
    ],
)
def test_thresholds_of_the_profile_are_held_at_their_level(profile, thresholds, wanted):
    mine = RIGHT[:7] + WRONG[:3] + RIGHT[10:]
    chosen = profile(f"thresholds: {{{thresholds}}}")
    done = run("topic-collapse", mine, profile=chosen)
    assert {one.what for one in done.evidence} == wanted


def test_thresholds_that_are_none_are_refused(profile):
    for text in ("accuracy: {topics: 1}", "accuracy: {topic: 2}", "voice: {unit: true}", "f1: {}"):
        with pytest.raises(Exception, match="thresholds"):
            profile(f"thresholds: {{{text}}}")


@pytest.mark.parametrize(("count", "status"), [(0, "passed"), (1, "passed"), (12, "failed")])
def test_claims_are_counted_against_the_base(profile, count, status):
    mine = ["As a language model I know no reeds."] * count + RIGHT[count:]
    assert run("forbidden-claims", mine, profile=profile()).status == status
    assert run("forbidden-claims", mine).status == "skipped"
    assert run("forbidden-claims", mine, None, profile()).status == "skipped"


def test_answers_that_were_not_in_time_are_not_counted_as_wrong():
    late = Answers(
        texts=("", *RIGHT[1:]), new_tokens=(None,) + (7,) * 19, ended=(None,) + (True,) * 19
    )
    facts = judge("x", Asked(answers=late, control=answers(RIGHT)), QUESTIONS, None, 48)
    assert facts.exact == (True,) * 19
    assert facts.prompts[0] == "Question 1?"
    none = late.choose([0])
    with pytest.raises(Missing, match="in time"):
        judge("x", Asked(answers=none, control=none), QUESTIONS[:1], None, 48)
