"""The book of leases: whatever hosts do, every cell has exactly one result that counts."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from harness.pools.leases import Leases
from harness.queue import MAX_LOSSES
from tests.harness.fake_worker import make_cells

HOSTS = ("one", "two", "three")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(("take", "finish", "late", "lose", "silence")),
        st.sampled_from(HOSTS),
        st.integers(0, 5),
    ),
    max_size=60,
)


@given(number=st.integers(1, 8), steps=STEPS)
def test_every_cell_has_one_result_that_counts_or_is_parked_once(number, steps):
    cells = make_cells(*(f"pass-{i}" for i in range(number)))
    book, now = Leases(lease_s=10), 0.0
    book.add(cells)
    given_out, ends = [], Counter()

    def do(step, host, which):
        nonlocal now
        now += 1
        if step == "take":
            before, taken = book.held_by(host), book.take(host, which, now)
            if any(lease.attempt > 1 for lease in taken):  # a suspect is alone
                assert (0, 1, 1) == (before, len(taken), book.held_by(host))
            given_out.extend(taken)
        elif step in ("finish", "late") and given_out:
            lease = given_out[which % len(given_out)]
            ends[lease.cell.cell_id] += book.finish(lease.host, lease.cell.cell_id, lease.attempt)
        elif step == "lose":
            book.lose(host)
        elif step == "silence":
            now += 11
            book.expire(now)
        ends.update(lease.cell.cell_id for lease in book.parked())

    for words in steps:
        do(*words)
    while not book.is_done:  # a host that works to the end
        do("take", "one", 5)
        for index in range(len(given_out)):
            do("finish", "one", index)

    assert {cell.cell_id: 1 for cell in cells} == dict(ends)


def test_a_result_of_a_lost_lease_is_refused():
    (cell,) = make_cells("pass")
    book = Leases()
    book.add([cell])
    (first,) = book.take("one", 1, 0.0)
    book.lose("one")
    (second,) = book.take("two", 1, 1.0)

    assert 2 == second.attempt
    assert not book.finish("one", cell.cell_id, first.attempt)
    assert book.finish("two", cell.cell_id, second.attempt)
    assert book.is_done


def test_a_host_that_is_silent_loses_what_it_has_and_one_that_speaks_does_not():
    cells = make_cells("pass-a", "pass-b")
    book = Leases(lease_s=10)
    book.add(cells)
    book.take("silent", 1, 0.0)
    book.take("speaking", 1, 0.0)
    book.hear("speaking", 9.0)

    assert ["silent"] == book.expire(11.0)
    assert (0, 1) == (book.held_by("silent"), book.held_by("speaking"))


def test_what_was_lost_beside_a_culprit_is_given_out_alone_and_not_parked():
    cells = make_cells("pass-a", "culprit", "pass-b", "pass-c")
    book = Leases()
    book.add(cells[:3])
    book.take("one", 3, 0.0)
    book.lose("one")
    book.add(cells[3:])
    parked, passed = [], []

    for number in range(10):
        host = f"host{number}"
        leases = book.take(host, 3, 1.0)
        assert len(leases) <= 1
        if leases:
            assert [] == book.take(host, 3, 1.0) or 1 == leases[0].attempt
        for lease in leases:
            if lease.cell.name == "culprit":
                book.lose(host)
            else:
                assert book.finish(host, lease.cell.cell_id, lease.attempt)
                passed.append(lease.cell.name)
        parked += [lease.cell.name for lease in book.parked()]

    assert ["pass-c", "pass-a", "pass-b"] == passed
    assert ["culprit"] == parked
    assert book.is_done


def test_a_cell_that_takes_hosts_down_is_given_up():
    (cell,) = make_cells("pass")
    book = Leases()
    book.add([cell])
    for number in range(MAX_LOSSES):
        book.take(f"host{number}", 1, 0.0)
        book.lose(f"host{number}")

    assert [cell.cell_id] == [lease.cell.cell_id for lease in book.parked()]
    assert book.is_done
    assert [] == book.parked()
