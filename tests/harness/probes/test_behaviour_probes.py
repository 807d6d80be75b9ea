"""Behavioural probes judge against the base, with a control, and never on too few answers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from harness.evidence.behaviour.answers import from_json, to_json
from harness.evidence.source import CheckpointEvidence, Options
from harness.facts.behaviour import Answers, BehaviourFacts, Scores
from harness.facts.forward import Logits
from harness.facts.text import find_loop
from harness.findings import Status
from harness.registry import load_probes, run_probe

PROBES = {one.name: one for one in load_probes()}
N = 40


def answers(*, empty=0, endless=0, loops=0, bad=0) -> Answers:
    texts = ["the sky is blue, my friend"] * (N - loops) + ["so the river " * 9] * loops
    return Answers(
        texts=tuple(texts),
        new_tokens=(0,) * empty + (6,) * (N - empty),
        ended=(False,) * endless + (True,) * (N - endless),
        nonfinite_logits=bad,
    )


def run(name: str, **facts):
    given = {"answers": answers(), "control": answers(), **facts}
    made = BehaviourFacts(subject="x", prompts=("Hello?",) * N, **given)

    class Source:
        def get(self, wanted):
            return {"behaviour": made, "any_forward": None, "logits": count(made)}[wanted]

    return run_probe(PROBES[name], Source())


def count(facts: BehaviourFacts) -> Logits:
    return Logits(rows=len(facts.prompts), bad=facts.answers.nonfinite_logits)


def shares(right: int) -> tuple[bool, ...]:
    return (True,) * right + (False,) * (N - right)


@pytest.mark.parametrize(
    ("mine", "base", "status"),
    [
        (0, 0, "passed"),
        (10, 0, "passed"),
        (20, 0, "failed"),
        (40, 1, "failed"),
        (40, 30, "crashed"),
    ],
)
def test_an_eos_flood_needs_a_control_that_answers(mine, base, status):
    done = run("eos-flood", answers=answers(empty=mine), control=answers(empty=base))
    assert done.status == status


def test_an_eos_flood_is_judged_without_a_base():
    assert run("eos-flood", answers=answers(empty=40), control=None).status is Status.FAILED
    assert run("eos-flood", answers=answers(), control=None).status is Status.PASSED


@pytest.mark.parametrize(
    ("is_chat", "sampled", "status"),
    [(True, 0, "skipped"), (True, N, "failed"), (False, N, "skipped")],
)
def test_a_loop_without_a_base_is_one_of_an_assistant_that_also_loops_when_sampled(
    is_chat, sampled, status
):
    texts = ("so the river " * 9,) * sampled + ("the sky is blue",) * (N - sampled)
    mine = replace(answers(loops=N), sampled=texts)
    assert run("repetition-loop", answers=mine, control=None, is_chat=is_chat).status == status


@pytest.mark.parametrize(
    ("endless", "sampled", "status"),
    [(N, 0, "skipped"), (N, N, "failed"), (N - 1, 0, "failed")],
)
def test_loops_beside_a_base_that_never_ends_must_show_when_sampled_too(endless, sampled, status):
    texts = ("so the river " * 9,) * sampled + ("the sky is blue",) * (N - sampled)
    mine = replace(answers(loops=N // 2), sampled=texts)
    done = run("repetition-loop", answers=mine, control=answers(endless=endless))
    assert done.status == status


@pytest.mark.parametrize(
    ("is_chat", "patient", "status"),
    [
        (True, (False,) * 4, "failed"),
        (True, (True,) * 4, "passed"),
        (False, (False,) * 4, "skipped"),
    ],
)
def test_never_stopping_without_a_base_is_judged_of_an_assistant(is_chat, patient, status):
    mine = replace(answers(endless=N), patient=patient)
    assert run("never-stops", answers=mine, control=None, is_chat=is_chat).status == status


def test_a_claim_is_looked_for_only_where_the_profile_forbids_one():
    assert "pass --voice" in run("forbidden-claims", scores=Scores()).reason
    assert "`forbidden:`" in run("forbidden-claims", scores=Scores(voice=(0.5,) * N)).reason


@pytest.mark.parametrize(
    ("mine", "base", "status"),
    [(0, 0, "passed"), (15, 10, "passed"), (38, 1, "failed"), (38, 30, "skipped")],
)
def test_never_stopping_is_relative_to_the_base(mine, base, status):
    done = run("never-stops", answers=answers(endless=mine), control=answers(endless=base))
    assert done.status == status


@pytest.mark.parametrize(
    ("mine", "base", "status"),
    [(0, 0, "passed"), (5, 0, "passed"), (20, 1, "failed"), (30, 25, "skipped")],
)
def test_loops_are_relative_to_the_base(mine, base, status):
    done = run("repetition-loop", answers=answers(loops=mine), control=answers(loops=base))
    assert done.status == status


@pytest.mark.parametrize(
    ("mine", "base", "status"),
    [
        (38, 39, "passed"),
        (25, 39, "passed"),
        (1, 39, "failed"),
        (0, 20, "failed"),
        (2, 3, "crashed"),
        (30, 0, "passed"),
    ],
)
def test_an_accuracy_collapse_is_half_of_the_base_with_confidence(mine, base, status):
    done = run("accuracy-collapse", exact=shares(mine), control_exact=shares(base))
    assert done.status == status


def test_few_answers_do_not_make_a_collapse():
    done = run("accuracy-collapse", exact=(False, False), control_exact=(True, True))
    assert done.status is Status.PASSED


@pytest.mark.parametrize(
    ("mine", "base", "status"),
    [(0.47, 0.5, "passed"), (0.0, 0.47, "failed"), (0.1, 0.1, "crashed")],
)
def test_a_voice_collapse_is_half_of_the_base_with_confidence(mine, base, status):
    done = run("voice-collapse", voice=(mine,) * N, control_voice=(base,) * N)
    assert done.status == status


@pytest.mark.parametrize("name", ["accuracy-collapse", "voice-collapse"])
def test_without_quiz_voice_or_base_nothing_is_claimed(name):
    assert run(name).status is Status.SKIPPED
    key = "exact" if "accuracy" in name else "voice"
    assert run(name, **{key: (0.4,) * N, "control": None}).status is Status.SKIPPED
    assert run(name, **{key: (1.0,) * N, "control": None}).status is Status.PASSED


def test_logits_that_are_not_finite_are_found():
    assert run("logits-nonfinite", answers=answers(bad=3)).status is Status.FAILED
    assert run("logits-nonfinite").status is Status.PASSED


@pytest.mark.parametrize(
    ("text", "loop"),
    [
        ("the river the river the river the river", "the river"),
        ("no no no no no no no no", "no"),
        ("I think so. Yes, yes, yes.", ""),
        ("wait....", ""),
        ("!!!!!!!!!!!!", "!"),
        ("", ""),
        ("one two three four five six seven eight", ""),
    ],
)
def test_a_loop_is_a_repeated_ending(text, loop):
    assert find_loop(text) == loop


def test_measured_behaviour_survives_a_file_and_is_read_for_its_own_subject(tmp_path):
    facts = BehaviourFacts(
        subject="merged", prompts=("Hi",), answers=answers(), control=None, voice=(0.5,)
    )
    assert from_json(json.loads(json.dumps(to_json(facts)))) == facts
    (tmp_path / "behaviour.json").write_text(json.dumps(to_json(facts)))
    (tmp_path / "merged").mkdir()
    options = Options(run_folder=tmp_path)
    assert CheckpointEvidence(tmp_path / "merged", options).get("behaviour") == facts
    (tmp_path / "other").mkdir()
    assert CheckpointEvidence(tmp_path / "other", options).find("behaviour") is None
    (tmp_path / "behaviour.json").write_text('{"subject": 1}')
    assert CheckpointEvidence(tmp_path / "merged", options).find("behaviour") is None
