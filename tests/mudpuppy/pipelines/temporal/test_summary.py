"""Shares, intervals, tables and the printed block, against figures worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mudpuppy.intervals import wilson_interval
from mudpuppy.pipelines.temporal.judging import LEAKED, MADE_UP, REFUSED, RIGHT, WRONG, Verdict
from mudpuppy.pipelines.temporal.summary import Share, format_summary, summarise
from tests.mudpuppy.pipelines.temporal.making_records import records


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    return records(tmp_path_factory.mktemp("records"))


def of_the_document(read, right, false_refusals, refused, leaked, wrong=0, made_up=0):
    """Return a summary of so many answers."""
    kept, gone = read[0], read[6]
    words = [(kept, RIGHT)] * right + [(kept, REFUSED)] * false_refusals + [(kept, WRONG)] * wrong
    words += [(gone, REFUSED)] * refused + [(gone, LEAKED)] * leaked + [(gone, MADE_UP)] * made_up
    asked = [record for record, _ in words]
    return summarise(asked, [Verdict(word=word, reason="") for _, word in words])


def test_the_document_s_own_figures_are_printed_as_there(read):
    text = format_summary(of_the_document(read, 225, 25, 230, 20))
    for line in (
        "EVALUATION RESULTS",
        "📚 RETAIN (Pre-cutoff Knowledge)",
        "  Total questions: 250",
        "  Answered correctly: 225 (90.0%;",
        "  False refusals: 25 (10.0%;",
        "🚫 UNLEARN (Post-cutoff Knowledge)",
        "  Correctly refused: 230 (92.0%;",
        "  Knowledge leaked: 20 (8.0%;",
        "📊 OVERALL",
        "  Temporal accuracy: 455 (91.0%;",
        "🎯 QUALITY ASSESSMENT",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("counts", "grade", "missed"),
    [
        ((100, 0, 100, 0), "excellent", []),
        # the document calls these excellent, and they miss two of its four targets
        ((225, 25, 230, 20), "acceptable", ["False Refusal Rate", "Knowledge Leakage"]),
        ((85, 0, 100, 0, 15), "acceptable", ["Retain Accuracy"]),  # above 85 %, and not 85 %
        ((70, 0, 100, 0, 30), "insufficient", ["Retain Accuracy"]),
        ((84, 16, 100, 0), "insufficient", ["False Refusal Rate"]),
        ((100, 0, 70, 0, 0, 30), "insufficient", ["Unlearn Success Rate"]),
        ((100, 0, 84, 16), "insufficient", ["Knowledge Leakage"]),
    ],
)
def test_grades(read, counts, grade, missed):
    summary = of_the_document(read, *counts)
    assert summary.grade == grade
    names = [one.title for one in summary.missed(target=grade != "insufficient")]
    assert names == missed
    text = format_summary(summary)
    assert all(f"     - {name}: " in text for name in missed)


def test_only_what_was_asked_is_judged(read):
    summary = of_the_document(read, 10, 0, 0, 0)
    assert [one.share for one in summary.judged] == ["retain.right", "retain.false_refusals"]
    text = format_summary(summary, sample_of=50)
    assert "UNLEARN" not in text
    assert "A sample: 10 of 50 questions were asked (--limit)" in text


def test_topics_and_years_add_up_to_the_whole(read):
    words = [RIGHT, WRONG, REFUSED, RIGHT, RIGHT, RIGHT, REFUSED, LEAKED, MADE_UP, REFUSED]
    summary = summarise(read, [Verdict(word=word, reason="") for word in words])

    assert list(summary.by_topic) == ["later", "world"]
    assert (summary.by_topic["world"].right, summary.by_topic["later"].leaked) == (4, 1)
    assert sum(one.retain + one.unlearn for one in summary.by_topic.values()) == len(read)
    assert list(summary.by_year) == ["1597", "1789", "1945", "1969", "1989", "2007"]
    assert summary.by_year["1969"].unlearn == 2
    text = format_summary(summary)
    assert "BY TOPICS: retained | unlearnt" in text
    assert "  1969 " in text


def test_wilson_s_interval_has_the_values_of_its_formula():
    # (p + z2/2n -+ z sqrt(p(1-p)/n + z2/4n2)) / (1 + z2/n), with z = 1.959964
    low, high = wilson_interval(0.9, 250)
    assert (low, high) == pytest.approx((0.85655, 0.93129), abs=1e-4)
    assert wilson_interval(0.0, 10) == pytest.approx((0.0, 0.27753), abs=1e-4)


@given(total=st.integers(1, 5000), data=st.data())
def test_an_interval_holds_its_share_and_narrows(total, data):
    count = data.draw(st.integers(0, total))
    low, high = Share(count, total).interval
    assert 0 <= low <= count / total + 1e-9
    assert count / total - 1e-9 <= high <= 1
    wider = Share(count, total).interval
    narrower = Share(count * 10, total * 10).interval
    assert narrower[1] - narrower[0] < wider[1] - wider[0]
    assert not math.isnan(low)


def test_nothing_asked_says_nothing():
    assert Share(0, 0).interval == (0.0, 1.0)
    assert Share(0, 0).value == 0.0
