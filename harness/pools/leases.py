"""Which host works on which cell: leases with heartbeats, so that every cell has one result.

Knows neither hosts nor transport: a driver tells it what it hears and when. A host that is not
heard of loses its leases, and its cells are given out again with a higher attempt; a result of a
lost lease that comes in late is refused. A cell that was lost is a suspect: a host gets it when
nothing else waits, and alone, so that a second loss can be laid to its charge; then it is parked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from harness.matrix import Cell
from harness.queue import MAX_LOSSES

LEASE_S = 60.0
"""Seconds without a word from a host after which its cells are given to others."""


@dataclass(frozen=True)
class Lease:
    """One cell at one host."""

    cell: Cell
    """The cell."""
    attempt: int
    """How often the cell was given out, this time included."""
    host: str
    """Who has it."""


@dataclass
class Leases:
    """The book of who has what."""

    lease_s: float = LEASE_S
    """Seconds without a word after which a host has lost its leases."""
    _waiting: deque[tuple[Cell, int]] = field(default_factory=deque)
    _suspects: deque[tuple[Cell, int]] = field(default_factory=deque)
    _held: dict[str, Lease] = field(default_factory=dict)
    _heard: dict[str, float] = field(default_factory=dict)
    _parked: list[Lease] = field(default_factory=list)

    def add(self, cells: Iterable[Cell]) -> None:
        """Add cells that wait to be given out, in their order."""
        self._waiting.extend((cell, 1) for cell in cells)

    @property
    def is_done(self) -> bool:
        """Whether no cell waits and none is held."""
        return not self._waiting and not self._suspects and not self._held

    def held_by(self, host: str) -> int:
        """Return how many cells a host has."""
        return sum(lease.host == host for lease in self._held.values())

    def take(self, host: str, number: int, now_s: float) -> list[Lease]:
        """Give up to `number` cells to a host, and take that for a word from it.

        A host that holds a suspect gets nothing more, and one that holds anything gets no suspect.
        """
        self.hear(host, now_s)
        held = [lease for lease in self._held.values() if lease.host == host]
        if any(lease.attempt > 1 for lease in held):
            return []
        given: list[Lease] = []
        while self._waiting and len(given) < number:
            given.append(self._give(host, *self._waiting.popleft()))
        if self._suspects and number > 0 and not held and not given:
            given.append(self._give(host, *self._suspects.popleft()))
        return given

    def _give(self, host: str, cell: Cell, attempt: int) -> Lease:
        lease = Lease(cell, attempt, host)
        self._held[cell.cell_id] = lease
        return lease

    def hear(self, host: str, now_s: float) -> None:
        """Note that a host has said something."""
        self._heard[host] = now_s

    def finish(self, host: str, cell_id: str, attempt: int) -> bool:
        """Return whether a result counts: its lease is still that host's, at that attempt."""
        lease = self._held.get(cell_id)
        if lease is None or (lease.host, lease.attempt) != (host, attempt):
            return False
        del self._held[cell_id]
        return True

    def expire(self, now_s: float) -> list[str]:
        """Take the leases of silent hosts away, and return those hosts."""
        silent = [h for h, heard in self._heard.items() if now_s - heard > self.lease_s]
        for host in silent:
            self.lose(host)
        return silent

    def lose(self, host: str) -> None:
        """Take the leases of a host away: its cells wait again, as suspects, or are parked."""
        self._heard.pop(host, None)
        for cell_id, lease in list(self._held.items()):
            if lease.host != host:
                continue
            del self._held[cell_id]
            if lease.attempt >= MAX_LOSSES:
                self._parked.append(lease)
            else:
                self._suspects.append((lease.cell, lease.attempt + 1))

    def parked(self) -> list[Lease]:
        """Return, once, the leases of cells that are given up."""
        found, self._parked = self._parked, []
        return found
