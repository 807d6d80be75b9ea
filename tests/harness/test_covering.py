"""A covering array covers everything that can be covered, as brute force counts it."""

import json
from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.covering import Array, cover, is_feasible, load_rows, measure
from mudpuppy.features import FEATURES, METHODS, PRECISIONS
from mudpuppy.ruleform import Rule
from mudpuppy.rules import NEEDS, RULES, decide

NAMES = tuple("abcdefg")
APART = tuple(need.feature for need in reversed(NEEDS))


def rule(features="", *, any_of="", without="") -> Rule:
    return Rule(
        code="MP-R99",
        name="made-up",
        methods=frozenset({"lora"}),
        features=frozenset(features),
        any_of=frozenset(any_of),
        without=frozenset(without),
        reason="",
        hint="",
    )


def array(features=NAMES, rules=(), *, strength=2, apart=(), seed=0) -> Array:
    return Array(
        method="lora",
        precision="bf16",
        features=tuple(features),
        strength=strength,
        apart=tuple(apart),
        seed=seed,
        rules=tuple(rules),
    )


some = st.sets(st.sampled_from(NAMES), max_size=3)
tables = st.lists(
    st.builds(lambda f, a, w: rule(f, any_of=a, without=w - f - a), some, some, some), max_size=6
)
arrays = st.builds(
    array,
    st.integers(1, len(NAMES)).map(lambda n: NAMES[:n]),
    tables,
    strength=st.integers(1, 3),
    apart=st.sets(st.sampled_from(NAMES[:2])).map(sorted),
    seed=st.integers(0, 3),
)


def accepted_rows(one: Array) -> list[frozenset[str]]:
    """Try every single combination."""
    values = product((True, False), repeat=len(one.features))
    rows = [frozenset(n for n, on in zip(one.features, row, strict=True) if on) for row in values]
    return [row for row in rows if not any(r.applies("lora", "bf16", row) for r in one.rules)]


def tuples_in(one: Array, rows) -> set:
    size = min(one.strength, len(one.features))
    return {
        (names, tuple(name in row for name in names))
        for names in combinations(one.features, size)
        for row in rows
    }


@settings(deadline=None, max_examples=150)
@given(arrays)
def test_everything_that_an_accepted_combination_holds_stands_in_an_accepted_row(one: Array):
    accepted = accepted_rows(one)

    rows = cover(one)

    assert set(rows) <= set(accepted)
    assert tuples_in(one, accepted) == tuples_in(one, rows)


@settings(deadline=None)
@given(arrays, st.integers(0, 3))
def test_the_count_is_that_of_brute_force_whatever_rows_there_are(one: Array, left_out: int):
    accepted = accepted_rows(one)
    rows = accepted[left_out:]

    found = measure(one, rows)

    assert len(tuples_in(one, accepted)) == found.feasible
    assert len(tuples_in(one, rows)) == found.covered
    assert (found.covered < found.feasible) == bool(found.missing)


@settings(deadline=None)
@given(arrays, st.sets(st.sampled_from(NAMES)), st.sets(st.sampled_from(NAMES)))
def test_feasible_is_what_some_accepted_combination_has(one: Array, on, off):
    expected = any(row >= on and not row & off for row in accepted_rows(one))

    assert expected == is_feasible(one, on=on, off=off)


def test_what_stands_apart_is_on_in_rows_of_its_own_only():
    rows = cover(array(apart="ab"))

    assert 2 <= sum("a" in row for row in rows) <= 6
    assert [row for row in rows if {"a", "b"} <= row]
    assert 2 <= sum("b" in row and "a" not in row for row in rows) <= 6


def test_the_same_array_gives_the_same_rows_and_another_seed_gives_others():
    assert cover(array()) == cover(array())
    assert cover(array()) != cover(array(seed=1))


def test_a_rule_about_another_method_changes_nothing():
    stranger = Rule(**{**vars(rule("a")), "methods": frozenset({"full"})})

    assert array(rules=[stranger]).digest() == array().digest()
    assert array(rules=[rule("a")]).digest() != array().digest()


def test_rows_are_kept_and_a_damaged_file_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("MUDPUPPY_CACHE", str(tmp_path))
    rows = load_rows(array())
    (path,) = (tmp_path / "covering").iterdir()
    monkeypatch.setattr("harness.covering.cover", lambda one: pytest.fail("was made again"))

    assert rows == load_rows(array()) == cover_of_file(path)

    monkeypatch.undo()
    monkeypatch.setenv("MUDPUPPY_CACHE", str(tmp_path))
    path.write_text("[[")

    assert rows == load_rows(array()) == cover_of_file(path)


def cover_of_file(path):
    return tuple(frozenset(row) for row in json.loads(path.read_text()))


@pytest.mark.parametrize("method", ["full", "gptq", "kto"])
def test_every_pair_of_features_of_the_real_table_meets(method: str):
    one = Array(method=method, precision="bf16", features=tuple(FEATURES), strength=2, apart=APART)

    rows = cover(one)

    assert not [row for row in rows if not decide(method, "bf16", row).accepted]
    assert 1.0 == measure(one, rows).share
    assert len(rows) <= 25


def test_a_combination_that_is_rejected_alone_has_no_rows():
    (code,) = {r.code for r in RULES if r.name == "fp8-with-quantised-weights"}
    one = Array(method="qlora", precision="fp8", features=tuple(FEATURES), strength=2)

    assert () == cover(one)
    assert (0, 0) == (measure(one, ()).feasible, measure(one, ()).covered)
    assert code in {rule.code for rule in decide("qlora", "fp8").rejections}


def test_methods_and_precisions_are_those_of_the_table():
    assert {r.methods <= set(METHODS) and r.precisions <= set(PRECISIONS) for r in RULES} == {True}
