"""Batches by tokens: within budget, every sample once, as many as promised, new in each epoch."""

import pytest
from accelerate import Accelerator, skip_first_batches
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from mudpuppy.data.batches import TokenBudgetSampler, plan_batches, split_to_share
from mudpuppy.errors import DatasetError

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


@given(
    lengths=LENGTHS, spare=st.integers(0, 100), epoch=st.integers(0, 5), parties=st.integers(1, 4)
)
def test_within_budget_every_sample_once_as_many_as_promised(lengths, spare, epoch, parties):
    budget = max(lengths) + spare
    if len(lengths) % parties and max(lengths) * 2 > budget:
        return  # single samples, perhaps, that cannot be shared evenly
    lengths = lengths if len(lengths) >= 2 * parties else lengths * 2 * parties
    sampler = TokenBudgetSampler(lengths, budget, seed=1, parties=parties)
    sampler.set_epoch(epoch)

    batches = list(sampler)

    assert len(sampler) == len(batches)
    assert 0 == len(batches) % parties
    assert list(range(len(lengths))) == sorted(index for batch in batches for index in batch)
    assert all(len(batch) * max(lengths[i] for i in batch) <= budget for batch in batches)
    again = TokenBudgetSampler(lengths, budget, seed=1, parties=parties)
    again.set_epoch(epoch)
    assert batches == list(again)


@given(lengths=LENGTHS, budget=st.integers(40, 200))
def test_no_two_neighbouring_batches_would_fit_into_one(lengths, budget):
    lengths = sorted(lengths)
    sizes = plan_batches(lengths, budget)
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]

    for index in range(len(sizes) - 1):
        assert (sizes[index] + 1) * lengths[ends[index]] > budget


def test_the_order_is_new_in_each_epoch_and_with_each_seed():
    sampler = TokenBudgetSampler([5] * 40, 20, seed=1)
    first = list(sampler)
    sampler.set_epoch(1)

    assert first != list(sampler)
    assert first != list(TokenBudgetSampler([5] * 40, 20, seed=2))
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in sampler}


def test_short_batches_do_not_all_come_first():
    lengths = [1 + index for index in range(40)]
    batches = list(TokenBudgetSampler(lengths, 80, seed=1))
    longest = [max(lengths[index] for index in batch) for batch in batches]

    assert sorted(longest) != longest


def test_a_sample_beyond_the_budget_is_named_by_its_line():
    with pytest.raises(DatasetError, match=r"chats.jsonl:7: a sample of 30 tokens .* 20 tokens"):
        TokenBudgetSampler([3, 30, 4], 20, seed=0, file="chats.jsonl", lines=[5, 7, 8])


def test_too_few_samples_for_the_processes_are_told():
    assert [1, 1, 2] == split_to_share([4], 3)
    with pytest.raises(DatasetError, match="2 batches of one sample cannot be shared evenly by 3"):
        TokenBudgetSampler([3, 3], 20, seed=0, parties=3)


def test_processes_share_the_batches_without_repeating_any():
    sampler = TokenBudgetSampler(list(range(1, 30)), 64, seed=3, parties=2)
    shards = [BatchSamplerShard(sampler, 2, index, even_batches=False) for index in range(2)]

    parts = [list(shard) for shard in shards]

    assert len(parts[0]) == len(parts[1]) == len(shards[0]) == len(shards[1])
    assert list(range(29)) == sorted(i for part in parts for batch in part for i in batch)


def test_a_prepared_loader_keeps_length_epochs_and_can_skip():
    sampler = TokenBudgetSampler([4, 9, 2, 7, 7, 3, 8], 16, seed=3)
    loader = Accelerator(cpu=True).prepare(
        DataLoader(list(range(7)), batch_sampler=sampler, collate_fn=list)
    )
    epochs = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        epochs.append(list(loader))
    loader.set_epoch(1)
    rest = list(skip_first_batches(loader, 1))

    assert len(loader) == len(sampler) == len(epochs[0])
    assert epochs[0] != epochs[1]
    assert epochs[1][1:] == rest
