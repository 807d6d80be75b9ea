"""Which rows were trained, and in which turn: by the dataset and the settings alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.observations_twin import Deviation
from harness.twin.asked import Asked
from harness.twin.dataset import Made
from harness.twin.rows import IGNORED, Answer, Row

Batches = Sequence[Sequence[Row]]
"""Micro-batches of one step."""


@dataclass(frozen=True, kw_only=True)
class Turns:
    """Rows as they came."""

    asked: Asked
    """The settings."""
    made: Made
    """The dataset's rows."""
    steps: Sequence[Batches]
    """Steps of the run."""
    evaluated: Batches
    """Batches of its first evaluation."""
    stopped_early: bool
    """Whether the run ended before its last step."""

    def deviations(self) -> Iterator[Deviation]:
        """Yield whatever is not as the dataset and the settings have it."""
        yield from self._unknown()
        yield from self._shapes()
        yield from self._repeated()
        yield from self._held_out()
        yield from self._number_of_steps()
        if self.asked.method == "kto":
            yield from self._stand_ins()

    @property
    def batches(self) -> list[tuple[int, Sequence[Row]]]:
        """Every micro-batch with the number of its step."""
        return [(i + 1, rows) for i, step in enumerate(self.steps) for rows in step]

    @property
    def in_training(self) -> list[Row]:
        """The rows of the dataset that are to be trained."""
        held = Counter(_key(self.asked, row) for rows in self.evaluated for row in rows)
        kept = []
        for row in self.made.rows:
            if held[_key(self.asked, row)]:
                held[_key(self.asked, row)] -= 1
            else:
                kept.append(row)
        return kept

    def _unknown(self) -> Iterator[Deviation]:
        """Yield the first row that the dataset does not make, with what is different in it."""
        known: dict[Any, list[Row]] = defaultdict(list)
        for row in self.made.rows:
            known[_key(self.asked, row)].append(row)
        seen = [*self.batches, *((None, rows) for rows in self.evaluated)]
        for step, rows in seen:
            for row in rows:
                same = known[_key(self.asked, row)]
                fault = _difference(self.asked, row, same)
                if fault:
                    where = "a row that is trained" if step else "a row that is evaluated"
                    yield replace(fault, what=f"{where}: {fault.what}", step=step)
                    return

    def _shapes(self) -> Iterator[Deviation]:
        """Yield the first micro-batch and the first step of another size than asked for."""
        accumulated, plan = self.asked.gradient_accumulation, self.plan()
        left = list(plan)
        for number, step in enumerate(self.steps, start=1):
            wanted = min(accumulated, len(left))
            if len(step) != wanted:
                what = "micro-batches of the step"
                yield Deviation(what=what, step=number, expected=wanted, found=len(step))
                return
            for rows in step:
                fault = self._size_fault(rows, left)
                if fault:
                    yield replace(fault, step=number)
                    return
            left = left or list(plan)

    def _size_fault(self, rows: Sequence[Row], left: list[int]) -> Deviation | None:
        """Take a batch out of the plan of its epoch, and return what is wrong with its size."""
        if self.asked.packing:
            left.pop(0)
            tokens = sum(len(row.answers[0].ids) for row in rows)
            room = self.asked.batch_size * self.made.max_length
            if tokens <= room:
                return None
            return Deviation(what="tokens of a packed batch", expected=room, found=tokens)
        if len(rows) in left and (self.asked.tokens_per_batch or len(rows) == left[0]):
            left.remove(len(rows))
            return None
        expected = sorted(set(left)) if self.asked.tokens_per_batch else left[0]
        return Deviation(what="rows of the micro-batch", expected=expected, found=len(rows))

    def plan(self) -> list[int]:
        """Return the sizes of the micro-batches of one epoch; of packed ones, the packed rows."""
        rows, size = self.in_training, self.asked.batch_size
        if self.asked.tokens_per_batch:
            lengths = sorted(len(row.answers[0].ids) for row in rows)
            return _fill(lengths, self.asked.tokens_per_batch)
        number = len(rows)
        if self.asked.packing:
            number = _count_packed([len(row.answers[0].ids) for row in rows], self.made.max_length)
        if self.asked.method == "grpo":
            # A step takes whole prompts; a rest that does not fill one waits for the next epoch.
            whole = size * self.asked.gradient_accumulation
            number = number * self.asked.num_generations // whole * whole
        return [min(size, number - start) for start in range(0, number, size)]

    def _repeated(self) -> Iterator[Deviation]:
        """Yield the first row that came again before all others, or was left out of an epoch."""
        again = self.asked.num_generations if self.asked.method == "grpo" else 1
        wanted = Counter(_key(self.asked, row) for row in self.in_training)
        wanted = Counter({key: count * again for key, count in wanted.items()})
        left, batches_left = Counter(wanted), len(self.plan())
        for step, rows in self.batches:
            for row in rows:
                key = _key(self.asked, row)
                if key in wanted and not left[key]:
                    what = "a row is trained again before all others were"
                    yield Deviation(what=what, step=step, found=_show(row))
                    return
                left[key] -= 1
            batches_left -= 1
            if not batches_left:
                missed = sum(count for count in left.values() if count > 0)
                if missed and self.asked.method != "grpo":
                    what = "rows left out of an epoch"
                    yield Deviation(what=what, step=step, expected=0, found=missed)
                    return
                left, batches_left = Counter(wanted), len(self.plan())

    def _held_out(self) -> Iterator[Deviation]:
        """Yield what is wrong with the rows that are evaluated."""
        wanted = self.asked.count_held_out(len(self.made.rows))
        held = [_key(self.asked, row) for rows in self.evaluated for row in rows]
        number = len(set(held)) if self.asked.method == "grpo" else len(held)
        if self.evaluated and number != wanted:
            yield Deviation(what="rows held out", expected=wanted, found=number)
        allowed = {_key(self.asked, row) for row in self.in_training}
        trained = {_key(self.asked, row) for _, rows in self.batches for row in rows}
        both = (set(held) & trained) - allowed
        if both:
            yield Deviation(what="held-out rows that are trained", expected=0, found=len(both))

    def _stand_ins(self) -> Iterator[Deviation]:
        """Yield the first answer of KTO whose KL distance is measured on no other row's answer.

        The distance needs answers that do not belong to the prompt (Ethayarajh et al. 2024,
        section 4.1): another row of the batch, or of the dataset where a batch has one row.
        """
        seen = [*self.batches, *((None, rows) for rows in self.evaluated)]
        for step, rows in seen:
            for place, row in enumerate(rows):
                others = [one.answers[0] for i, one in enumerate(rows) if i != place]
                if not others:
                    own = _key(self.asked, row)
                    every = [x.answers[0] for x in self.made.rows if _key(self.asked, x) != own]
                    others = every or [row.answers[0]]
                stand_in = row.answers[1]
                if not any(_says_the_same(stand_in, one, self.made.max_length) for one in others):
                    what = "the KL distance is measured on an answer of no other row of the batch"
                    yield Deviation(what=what, step=step, found=_said(stand_in)[:24])
                    return

    def _number_of_steps(self) -> Iterator[Deviation]:
        if self.stopped_early or not self.steps:
            return
        wanted = self.planned_steps()
        if len(self.steps) != wanted:
            yield Deviation(what="optimizer steps", expected=wanted, found=len(self.steps))

    def planned_steps(self) -> int:
        """Return the optimizer steps that are asked for."""
        if self.asked.max_steps is not None:
            return int(self.asked.max_steps)
        by_epoch = -(-len(self.plan()) // self.asked.gradient_accumulation)
        return -int(-self.asked.epochs * by_epoch // 1)


def _key(asked: Asked, row: Row) -> Any:
    """Return what makes a row this one: of GRPO the prompt, of KTO not the stand-in."""
    if asked.method == "grpo":
        answer = row.answers[0]
        learnt = next((i for i, x in enumerate(answer.labels) if x != IGNORED), len(answer.ids))
        return answer.ids[:learnt]
    if asked.method == "kto":
        return row.answers[0].ids, row.is_good
    return row.key()


def _difference(asked: Asked, row: Row, known: Sequence[Row]) -> Deviation | None:
    """Return what distinguishes a row from those of the dataset with the same tokens."""
    if not known:
        return Deviation(what="its tokens are no row of the dataset", found=_show(row))
    if asked.method == "grpo":
        return None
    faults = [_fault(asked, row, wanted) for wanted in known]
    return None if None in faults else faults[0]


def _fault(asked: Asked, row: Row, wanted: Row) -> Deviation | None:
    """Return what distinguishes a row from one row of the dataset."""
    if row.forgets != wanted.forgets:
        return Deviation(what="it is forgotten", expected=wanted.forgets, found=row.forgets)
    for i, (found, expected) in enumerate(zip(row.answers, wanted.answers, strict=False)):
        if asked.method == "kto" and i:
            break
        if _normal(asked, found) != _normal(asked, expected):
            labels = _show_labels(expected), _show_labels(found)
            return Deviation(what="labels", expected=labels[0], found=labels[1])
    for name, pixels in wanted.extras.items():
        if name not in row.extras or not bool((row.extras[name] - pixels).abs().max() < 1e-3):
            return Deviation(what=f"{name} are not those of its image")
    return None


def _said(answer: Answer) -> list[int]:
    return [label for label in answer.labels if label != IGNORED]


def _says_the_same(one: Answer, other: Answer, longest: int) -> bool:
    """Return whether two answers are the same behind their prompts, as far as neither was cut."""
    left, right = _said(one), _said(other)
    if max(len(one.ids), len(other.ids)) >= longest:
        shorter = min(len(left), len(right))
        return left[:shorter] == right[:shorter]
    return left == right


def _normal(asked: Asked, answer: Answer) -> Answer:
    """Return an answer as it is compared: a reward model's labels say nothing."""
    one = answer.normal()
    return replace(one, labels=()) if asked.method == "rm" else one


def _show(row: Row) -> list[int]:
    return list(row.answers[0].ids[:24])


def _show_labels(answer: Answer) -> str:
    on = [i for i, label in enumerate(answer.labels) if label != IGNORED]
    labels = [answer.labels[i] for i in on]
    return f"positions {on[:3]} to {on[-3:]}, {len(on)} labels, {labels[:4]} to {labels[-2:]}"


def _fill(lengths: Sequence[int], budget: int) -> list[int]:
    """Return the sizes of batches of at most `budget` tokens, padding included, shortest first."""
    sizes: list[int] = []
    for length in lengths:
        if sizes and (sizes[-1] + 1) * length <= budget:
            sizes[-1] += 1
        else:
            sizes.append(1)
    return sizes


def _count_packed(lengths: Sequence[int], capacity: int) -> int:
    """Return how many rows of `capacity` tokens best fit, longest first, needs."""
    spaces: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, space in enumerate(spaces) if space >= length]
        if fitting:
            spaces[min(fitting, key=lambda i: spaces[i])] -= length
        else:
            spaces.append(capacity - length)
    return len(spaces)
