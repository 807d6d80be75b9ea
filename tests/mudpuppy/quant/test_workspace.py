"""Buffers are lent to one user at a time, and used again."""

import threading

import pytest
import torch

from mudpuppy.quant import workspace
from mudpuppy.quant.workspace import borrowed, room_for

CPU = torch.empty(0)


@pytest.fixture(autouse=True)
def nothing_waits(monkeypatch):
    monkeypatch.setattr(workspace, "_FREE", [])


def take_one(size):
    with borrowed(size, CPU) as space:
        return space.take(size, torch.uint8).data_ptr()


def test_memory_is_used_again():
    assert take_one(1000) == take_one(1000) == take_one(10)
    assert len(workspace._FREE) == 1


def test_a_larger_one_takes_the_place_of_a_smaller():
    take_one(1000)
    take_one(5000)
    assert [buffer.numel() for buffer in workspace._FREE] == [5000]


def test_two_at_the_same_time_have_memory_of_their_own():
    with borrowed(64, CPU) as one, borrowed(64, CPU) as other:
        a, b = one.take(64, torch.uint8), other.take(64, torch.uint8)
        assert a.data_ptr() != b.data_ptr()
    assert len(workspace._FREE) == 2


def test_many_threads_never_share_memory():
    wrong = []

    def work(value):
        for _ in range(200):
            with borrowed(512, CPU) as space:
                mine = space.take(512, torch.uint8).fill_(value)
                wrong.append(bool((mine != value).any()))

    threads = [threading.Thread(target=work, args=(value,)) for value in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 1600
    assert not any(wrong)


def test_pieces_do_not_overlap_and_the_rest_is_used_again():
    with borrowed(room_for((3, torch.float32), (5, torch.int64), (5, torch.int64)), CPU) as space:
        first = space.take(3, torch.float32).fill_(1.0)
        second = space.rest().take(5, torch.int64).fill_(2)
        third = space.rest().take(5, torch.int64).fill_(3)
        assert first.tolist() == [1.0] * 3
        assert second.tolist() == third.tolist() == [3] * 5


def test_more_than_was_borrowed_is_refused():
    with pytest.raises(MemoryError, match="of a buffer of"), borrowed(64, CPU) as space:
        space.take(65, torch.uint8)
    assert len(workspace._FREE) == 1  # given back all the same


def test_a_buffer_of_inference_mode_serves_outside_of_it():
    with torch.inference_mode():
        take_one(256)
    with borrowed(256, CPU) as space:
        space.take(64, torch.float32).zero_()


def test_what_has_no_memory_borrows_none():
    with borrowed(64, torch.empty(0, device="meta")) as space:
        assert space.take(3, torch.float32).device.type == "meta"
    assert workspace._FREE == []
