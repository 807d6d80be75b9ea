"""Samples and shards: the same again, everything once, and nothing left out without its reason."""

from __future__ import annotations

import pytest

from harness.matrix import Cell, load_cells
from harness.selection import Selection, select_cells
from harness.slices import take_sample, take_shard
from mudpuppy.errors import UsageError

FULL = load_cells("full")
EVERYTHING = Selection(chosen=FULL, left_out=())


def test_a_sample_is_the_same_for_a_seed_and_another_for_another() -> None:
    one, again, other = (take_sample(EVERYTHING, 50, seed).chosen for seed in ("a", "a", "b"))

    assert one == again
    assert 50 == len(one) == len(other)
    assert len({*names_of(one)} & {*names_of(other)}) < 15
    assert [*names_of(one)] == [name for name in names_of(FULL) if name in {*names_of(one)}]


def test_a_sample_of_more_than_there_is_is_everything() -> None:
    assert FULL == take_sample(EVERYTHING, 10_000, "a").chosen


def test_a_matrix_that_grows_keeps_most_of_a_sample() -> None:
    smaller = Selection(chosen=FULL[:-50], left_out=())

    before = {*names_of(take_sample(smaller, 100, "a").chosen)}
    after = {*names_of(take_sample(EVERYTHING, 100, "a").chosen)}

    assert len(before & after) > 85


def test_shards_share_every_cell_once_and_about_evenly() -> None:
    shards = [take_shard(EVERYTHING, f"{number}/4").chosen for number in range(1, 5)]

    assert sorted(names_of(FULL)) == sorted(name for shard in shards for name in names_of(shard))
    assert all(0.8 < 4 * len(shard) / len(FULL) < 1.2 for shard in shards)


def test_a_cell_stays_in_its_shard_whatever_else_is_selected() -> None:
    packed = select_cells(FULL, ["feature=packing"])

    alone = {*names_of(take_shard(packed, "2/4").chosen)}

    assert alone == {*names_of(packed.chosen)} & {*names_of(take_shard(EVERYTHING, "2/4").chosen)}


def test_what_a_sample_or_a_shard_leaves_out_has_its_reason() -> None:
    sampled = take_sample(EVERYTHING, 50, "a")
    sharded = take_shard(sampled, "1/2")

    reasons = [reason for _, reason in sharded.left_out]
    assert len(FULL) == len(sharded.chosen) + len(sharded.left_out)
    assert len(FULL) - 50 == reasons.count("left out by --sample 50 --seed a")
    assert 50 - len(sharded.chosen) == reasons.count("left out by --shard 1/2")


@pytest.mark.parametrize("word", ["0/4", "5/4", "1", "1/0", "a/b", "-1/4", "1/4/4"])
def test_a_shard_that_is_none_is_refused(word: str) -> None:
    with pytest.raises(UsageError, match="expected I/N"):
        take_shard(EVERYTHING, word)


def test_an_empty_shard_and_an_empty_sample_are_refused() -> None:
    one = Selection(chosen=FULL[:1], left_out=())
    with pytest.raises(UsageError, match="none of 1 cells"):
        [take_shard(one, f"{number}/3") for number in range(1, 4)]
    with pytest.raises(UsageError, match="expected 1 or more"):
        take_sample(EVERYTHING, 0, "a")


def names_of(cells: tuple[Cell, ...]) -> list[str]:
    return [cell.name for cell in cells]
