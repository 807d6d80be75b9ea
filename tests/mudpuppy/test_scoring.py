"""Scoring: what counts as the right answer, the right voice, a refusal; and hostile files."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mudpuppy.errors import ConfigError, DatasetError
from mudpuppy.patterns import compile_pattern, phrase_pattern, worst_steps
from mudpuppy.scoring import (
    PROFILE_HINT,
    VoiceProfile,
    exact_match,
    is_refusal,
    load_quiz,
    load_voice_profile,
    mean_voice,
    normalise,
    score_voice,
)

PROFILE = """
name: pond
families:
  - {name: opener, weight: 3, regexes: ["^well now"]}
  - {name: words, weight: 1, phrases: [reeds, "old mud"]}
negatives:
  - {weight: 0.5, phrases: ["in conclusion"]}
forbidden: {phrases: ["language model"]}
refusals: {phrases: ["don't know"], regexes: ["cannot s[ay]{2}"]}
"""
QUESTION = {"id": "a", "prompt": "p?", "answer": "x", "topic": "t", "kind": "fact"}


@pytest.fixture
def profile(tmp_path: Path) -> VoiceProfile:
    return read_profile(tmp_path, PROFILE)


def read_profile(folder: Path, text: str) -> VoiceProfile:
    path = folder / "voice.yaml"
    path.write_text(text, encoding="utf-8")
    return load_voice_profile(path)


def write_quiz(folder: Path, *lines: str) -> Path:
    path = folder / "quiz.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "answer",
    ["It is  Paris", "it is paris.", "It is\nParis!", "\uff29\uff54 is Paris ."],
)
def test_exact_match_ignores_case_spacing_and_the_final_stop(answer: str) -> None:
    assert exact_match(answer, "It is Paris.")


@pytest.mark.parametrize("answer", ["", "  ", ".", "It is Paris, France", "Paris", "It's Paris"])
def test_exact_match_wants_the_whole_answer(answer: str) -> None:
    assert not exact_match(answer, "It is Paris.")


def test_an_empty_answer_matches_nothing_even_an_empty_gold() -> None:
    assert not exact_match("", "")


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Well now, the reeds.", 1.0),
        ("Well now, yes.", 0.75),
        ("the old  mud says", 0.25),
        ("the reedscape", 0.0),
        ("Well now, the reeds, in conclusion.", 0.5),
        ("in conclusion, the reeds", 0.0),
        ("Well now, the reeds of a language model.", 0.0),
        ("", 0.0),
    ],
)
def test_the_voice_is_the_weighted_share_of_its_families(
    profile: VoiceProfile, text: str, expected: float
) -> None:
    assert score_voice(text, profile) == expected


@given(st.text(max_size=200))
def test_a_voice_score_stays_between_0_and_1(text: str) -> None:
    words = phrase_pattern("a")
    from mudpuppy.scoring import Markers

    family = Markers(name="f", weight=2, patterns=(words,))
    profile = VoiceProfile(name="p", families=(family,), negatives=(family,))
    assert 0.0 <= score_voice(text, profile) <= 1.0


def test_no_answers_is_an_error_and_not_a_score_of_zero(profile: VoiceProfile) -> None:
    assert mean_voice(["Well now, the reeds.", "no"], profile) == 0.5
    with pytest.raises(ValueError, match="no answers"):
        mean_voice([], profile)


def test_a_refusal_is_found_by_profile_or_patterns_and_with_curly_quotes(
    profile: VoiceProfile,
) -> None:
    assert is_refusal("I don\u2019t know that.", profile)
    assert is_refusal("I cannot say.", profile)
    assert not is_refusal("It is Paris.", profile)
    assert is_refusal("It is Paris.", [phrase_pattern("Paris")])


def test_all_problems_of_a_profile_are_listed_at_once(tmp_path: Path) -> None:
    text = "familes: []\nfamilies:\n  - {weight: -1, phrases: [a]}\n  - {regexes: ['(a+)+']}\n"
    with pytest.raises(ConfigError) as caught:
        read_profile(tmp_path, text)
    assert len(caught.value.problems) == 4
    assert "did you mean 'families'" in str(caught.value)
    assert "families[0].weight" in str(caught.value)
    assert "a group may not be repeated" in str(caught.value)
    assert "voice.yaml" in str(caught.value)
    assert "negatives, forbidden, refusals, similarity, thresholds" in caught.value.hint
    assert "docs/doctor.md" in caught.value.hint


EXAMPLES = "[well now, damp reeds, old mud]"


@pytest.mark.parametrize(
    ("similarity", "told"),
    [
        ("3", "similarity: keys are expected"),
        ("{}", "3 to 256 different texts are expected, found 0"),
        ("{examples: [a, 'A.', b]}", "different texts are expected, found 2"),
        ("{examples: [a, b, 3]}", "a list of texts"),
        (f"{{examples: {EXAMPLES}, neutral: [x]}}", "similarity.neutral: 3 to 256"),
        (f"{{examples: {EXAMPLES}, neutral: {EXAMPLES}}}", "is among the examples and"),
        (f"{{examples: {EXAMPLES}, weight: 0}}", "similarity.weight: a positive number"),
        (f"{{examples: {EXAMPLES}, wieght: 1}}", "did you mean 'weight'"),
    ],
)
def test_examples_of_a_voice_that_cannot_be_used_are_named(
    tmp_path: Path, similarity: str, told: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        read_profile(tmp_path, f"{PROFILE}similarity: {similarity}\n")


def test_examples_count_as_one_more_family_and_only_where_they_are_measured(tmp_path: Path) -> None:
    profile = read_profile(tmp_path, f"{PROFILE}similarity: {{examples: {EXAMPLES}, weight: 4}}\n")
    text = "Well now, hello."
    assert score_voice(text, profile) == 3 / 4
    assert score_voice(text, profile, 0.0) == 3 / 8
    assert score_voice(text, profile, 1.0) == 7 / 8
    assert score_voice(text + " In conclusion.", profile, 1.0) == 3 / 8
    assert score_voice("A language model.", profile, 1.0) == 0
    assert score_voice("", profile, 1.0) == 0
    assert score_voice(text, read_profile(tmp_path, PROFILE), 0.0) == 3 / 4


def test_the_example_of_a_profile_that_is_shown_is_one(tmp_path: Path) -> None:
    lines = [line.strip() for line in PROFILE_HINT.splitlines() if line.startswith("    ")]
    profile = read_profile(tmp_path, "\n".join(lines))
    assert score_voice("Well now, hello.", profile) == 1.0
    assert profile.forbidden


@pytest.mark.parametrize(
    "text", ["", "[1, 2]", "families: 3", "families: []", "a: [", "families: [x]", "- !!python/x 1"]
)
def test_a_profile_of_the_wrong_form_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        read_profile(tmp_path, text)


def test_a_quiz_is_read_whole(tmp_path: Path) -> None:
    path = write_quiz(tmp_path, json.dumps(QUESTION), "", json.dumps({**QUESTION, "id": "b"}))
    assert [question.id for question in load_quiz(path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "quiz.jsonl:2: is not JSON"),
        ("[]", "quiz.jsonl:2: is not a JSON object"),
        (json.dumps({**QUESTION, "id": "b", "answer": " "}), "quiz.jsonl:2: the field 'answer'"),
        (json.dumps({"id": "b"}), "quiz.jsonl:2: the field 'prompt'"),
        (json.dumps({**QUESTION, "id": "b", "kind": "facts"}), "did you mean 'fact'"),
        (json.dumps(QUESTION), "quiz.jsonl:2: the id 'a' is used twice"),
        ("[" * 100_000, "quiz.jsonl:2: is not JSON"),
    ],
)
def test_a_bad_line_of_a_quiz_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = write_quiz(tmp_path, json.dumps(QUESTION), line)
    with pytest.raises(DatasetError) as caught:
        load_quiz(path)
    assert message in str(caught.value)


def test_a_quiz_that_is_not_there_or_empty_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        load_quiz(tmp_path / "none.jsonl")
    with pytest.raises(DatasetError, match="holds no question"):
        load_quiz(write_quiz(tmp_path, ""))


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(?:a|a)*b",
        "a*b*c",
        r"\w+\s+\w+",
        r"(a)\1",
        "(a|a)" * 30,
        "(?P<x>a)",
        "a" * 201,
        "[",
        "((a)",
    ],
)
def test_a_pattern_that_may_hang_or_is_none_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError):
        compile_pattern(pattern, 4000)


@pytest.mark.parametrize(
    "pattern", ["^a", "a.{0,40}b", "x*y", "(?:http|ftp)s?:", "[]^]+z", r"\(a\)+", "a{", "(a)?b"]
)
def test_an_accepted_pattern_is_fast_on_the_longest_text(pattern: str) -> None:
    compiled = compile_pattern(pattern, 4000)
    started = time.process_time()
    for filling in "ax()[":
        compiled.search(filling * 4000)
    assert time.process_time() - started < 2.0


def test_alternatives_add_up_and_parts_multiply() -> None:
    assert worst_steps("a|b|c", 10) == 30
    assert worst_steps("(a|b)(c|d|e)", 10) == 60
    assert worst_steps("a{1,3}b{4}", 10) == 10 * 4 * 5
