"""One session with a checkpoint and its relatives: read, answer, compare, model after model.

    python -P -m harness.evidence.behaviour.session FOLDER

does the job of FOLDER/job.json and writes FOLDER/answers.json. At most two models are in memory.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness.evidence.behaviour import models as models
from harness.evidence.behaviour.child import ANSWERS, CONTROL, PROGRESS, Asked, Job, read_job
from harness.evidence.behaviour.compare import Comparer
from harness.evidence.behaviour.forward import diverge, measure, prepare
from harness.evidence.behaviour.generate import SURE_END, answer, find_open
from harness.evidence.behaviour.parity import Parity, bare, blaming
from harness.facts.behaviour import Answers
from harness.facts.forward import END, Forward
from harness.registry import ControlFailed

SHARE_FOR_ANSWERS = 0.75
"""Share of the time limit after which no further answer is waited for."""
SHARE_FOR_COMPARISONS = 0.8
"""Share of the time limit after which no further comparison is begun."""


@dataclass
class Seen:
    """What was seen of one model; the base's may come from an earlier session."""

    answers: Answers | None = None
    """Its answers."""
    forward: Forward | None = None
    """Its forward pass."""
    texts: tuple[tuple[int, ...], ...] = ()
    """Token ids of the neutral texts, as its tokenizer has them."""
    kept: tuple[Any, ...] = ()
    """Log-probabilities kept of each text."""
    prompts: tuple[tuple[int, ...], ...] = ()
    """Token ids of the prompts."""
    why_silent: str = ""
    """Why it was not asked."""


def ask(
    job: Job,
    *,
    control: Asked | None = None,
    kept: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Asked:
    """Ask a checkpoint and its base in this process; the arguments are those of `ask_in_child`.

    Raises:
        ControlFailed: one of the two could not be loaded and asked.
    """
    return _Session(job, say).hold(_thaw_control(control, kept), kept)


def ask_loaded(job: Job, model: Any, tokenizer: Any) -> Asked:
    """Ask a model that is loaded already, and its base, in this process.

    Raises:
        ControlFailed: one of the two could not be asked.
    """
    session = _Session(job, lambda text: None)
    return session.hold(
        None, None, models.Loaded(model=model, new_weights=(), scores=False), tokenizer
    )


class _Session:
    """The order in which models are loaded, asked, compared and let go."""

    def __init__(self, job: Job, say: Callable[[str], None]) -> None:
        self.job, self.say = job, say
        limit = SHARE_FOR_COMPARISONS * job.time_limit_s
        self.deadline = time.monotonic() + SHARE_FOR_ANSWERS * job.time_limit_s
        self.comparer = Comparer(ends_at=time.monotonic() + limit, say=say)
        self.is_adapter = job.base is not None and models.is_adapter(job.path)
        self.tokenizers: dict[Path, Any] = {}

    def hold(
        self,
        control: Seen | None,
        kept: Path | None,
        loaded: models.Loaded | None = None,
        tokenizer: Any = None,
    ) -> Asked:
        """Ask the control where it is not known, then the checkpoint, then compare."""
        job = self.job
        base: models.Loaded | None = None
        if loaded is not None:
            self.is_adapter = False  # whatever it is, its adapter cannot be switched off here
        if job.control is not None and control is None:
            base = self._load_control()
            control = self._look(job.control, base, None, is_control=True)
            _keep(control, kept)
        if loaded is None:
            loaded = self._attach(base) if self.is_adapter else self._swap(base)
        base = None
        mine = self._look(job.path, loaded, control, tokenizer)
        if control is not None:
            self._ask_the_rest(loaded, control, mine)
        parity = Parity(
            job=job,
            loaded=loaded,
            is_adapter=self.is_adapter,
            tokenizer=tokenizer or self._tokenizer(job.path),
            comparer=self.comparer,
            load=self._load,
        )
        consistency = parity.compare(mine.prompts) if job.compares else None
        return Asked(
            answers=mine.answers,
            forward=mine.forward,
            control=None if control is None else control.answers,
            control_forward=None if control is None else control.forward,
            divergence=_diverge(control, mine),
            consistency=consistency,
            why_silent=mine.why_silent,
        )

    def _load(self, path: Path) -> models.Loaded:
        self.say(f"loading {path.name}")
        with blaming(path):
            return models.load_model(path)

    def _load_control(self) -> models.Loaded:
        """Load the base, or the earlier stage that stands in its place."""
        stage, base = self.job.against, self.job.base
        if stage is None or base is None or not models.is_adapter(stage):
            path = stage or base
            assert path is not None
            return self._load(path)
        loaded = self._load(base)
        with blaming(stage):
            return replace(loaded, model=models.attach(loaded.model, stage))

    def _swap(self, base: models.Loaded | None) -> models.Loaded:
        """Load the checkpoint, once the control is out of memory."""
        _let_go(base)
        return self._load(self.job.path)

    def _attach(self, base: models.Loaded | None) -> models.Loaded:
        assert self.job.base is not None
        if base is None or self.job.against is not None:
            _let_go(base)
            base = self._load(self.job.base)
        self.say(f"attaching {self.job.path.name}")
        with blaming(self.job.path):
            return replace(base, model=models.attach(base.model, self.job.path))

    def _tokenizer(self, path: Path) -> Any:
        """Return the tokenizer of a checkpoint, or that of its base; None where there is none."""
        folder = models.find_tokenizer(path, self.job.base)
        if folder is not None and folder not in self.tokenizers:
            with blaming(path):
                self.tokenizers[folder] = models.load_tokenizer(folder)
        return None if folder is None else self.tokenizers[folder]

    def _look(
        self,
        path: Path,
        loaded: models.Loaded,
        control: Seen | None,
        tokenizer: Any = None,
        *,
        is_control: bool = False,
    ) -> Seen:
        """Read with a model and let it answer what that leaves open."""
        job = self.job
        tokenizer = tokenizer or self._tokenizer(path)
        if loaded.scores:
            return Seen(why_silent="it is a reward model: it scores texts and says nothing")
        if tokenizer is None:
            return Seen(why_silent="there is no tokenizer, in the folder or in its base")
        with blaming(path):
            self.say(f"reading with {path.name}")
            reading = prepare(loaded.model, tokenizer, job.prompts, job.golds, job.texts)
            forward, kept = measure(loaded.model, tokenizer, reading)
            wanted = self._choose(forward, control, is_control=is_control)
            empty = [p for p, top in zip(forward.places, forward.top, strict=True) if top == END]
            answers = answer(
                loaded.model,
                tokenizer,
                job.prompts,
                job.max_new_tokens,
                wanted=wanted,
                empty=empty,
                nonfinite=forward.nonfinite,
                deadline=self.deadline,
                tell=self._counting(path, len(wanted)),
            )
        return Seen(
            answers=answers,
            forward=forward,
            texts=reading.texts,
            kept=tuple(kept),
            prompts=reading.prompts,
        )

    def _counting(self, path: Path, total: int) -> Callable[[int], None]:
        """Return what says which question is being answered."""
        return lambda number: self.say(f"{path.name} answers question {number} of {total}")

    def _choose(self, forward: Forward, control: Seen | None, *, is_control: bool) -> Sequence[int]:
        """Return the prompts to answer now."""
        total = len(self.job.prompts)
        if self.job.asks_all:
            return range(total)
        if is_control:  # what it ends for sure is asked only if the checkpoint makes it necessary
            ends = dict(zip(forward.places, forward.end_last, strict=True))
            return [place for place in range(total) if ends.get(place, 0.0) < SURE_END]
        return find_open(forward, None if control is None else control.forward, total)

    def _ask_the_rest(self, loaded: models.Loaded, control: Seen, mine: Seen) -> None:
        """Let the base answer what the checkpoint had to answer and it had not."""
        path = self.job.control
        if mine.answers is None or control.answers is None or path is None:
            return
        pairs = zip(mine.answers.new_tokens, control.answers.new_tokens, strict=True)
        wanted = [
            n for n, (ours, theirs) in enumerate(pairs) if ours is not None and theirs is None
        ]
        if not wanted:
            return
        is_bare = self.is_adapter and self.job.against is None
        if not is_bare:  # both in memory: only where the checkpoint is in doubt
            loaded = self._load_control()
        tokenizer = self._tokenizer(path)
        with blaming(path), bare(loaded.model, is_bare):
            more = answer(
                loaded.model,
                tokenizer,
                self.job.prompts,
                self.job.max_new_tokens,
                wanted=wanted,
                deadline=self.deadline,
                tell=self._counting(path, len(wanted)),
            )
        control.answers = _merge(control.answers, more)


def _let_go(loaded: models.Loaded | None) -> None:
    if loaded is not None:
        loaded.model = None
        gc.collect()


def _merge(old: Answers, new: Answers) -> Answers:
    """Return answers with those of the prompts that were asked later."""
    later = [count is not None for count in new.new_tokens]

    def pick(one: Sequence[Any], two: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(b if is_new else a for a, b, is_new in zip(one, two, later, strict=True))

    return replace(
        old,
        texts=pick(old.texts, new.texts),
        new_tokens=pick(old.new_tokens, new.new_tokens),
        ended=pick(old.ended, new.ended),
        sampled=old.sampled + new.sampled,
    )


def _diverge(control: Seen | None, mine: Seen) -> tuple[float, ...] | None:
    """Return the divergence on each neutral text; None where the tokens are not the same."""
    if control is None or control.texts != mine.texts:
        return None
    return diverge(control.kept, mine.kept)


def _keep(seen: Seen, folder: Path | None) -> None:
    """Keep what the base's session leaves for the next checkpoint's."""
    if folder is None or not seen.kept:
        return
    import torch
    from safetensors.torch import save_file

    tensors = {f"text.{n}": one.contiguous() for n, one in enumerate(seen.kept)}
    ids = {f"ids.{n}": torch.tensor(one) for n, one in enumerate(seen.texts)}
    save_file(tensors | ids, folder / CONTROL)


def _thaw_control(control: Asked | None, folder: Path | None) -> Seen | None:
    """Return what is known of the base; None where nothing is, so that it is asked."""
    if control is None or control.control is None:
        return None
    seen = Seen(answers=control.control, forward=control.control_forward)
    if folder is not None and (folder / CONTROL).is_file():
        from safetensors.torch import load_file

        tensors = load_file(folder / CONTROL)
        count = sum(name.startswith("text.") for name in tensors)
        seen.kept = tuple(tensors[f"text.{n}"] for n in range(count))
        seen.texts = tuple(tuple(tensors[f"ids.{n}"].tolist()) for n in range(count))
    return seen


def main(argv: list[str] | None = None) -> int:
    """Do the job of a folder and write the answers, or the problem, beside it."""
    (name,) = sys.argv[1:] if argv is None else argv
    folder = Path(name)
    job, control, kept = read_job(folder)

    def say(text: str) -> None:
        with (folder / PROGRESS).open("a", encoding="utf-8") as lines:
            lines.write(text.replace("\n", " ") + "\n")

    try:
        found: dict[str, Any] = asdict(ask(job, control=control, kept=kept, say=say))
    except ControlFailed as failure:
        found = {"problem": str(failure)}
    (folder / ANSWERS).write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
