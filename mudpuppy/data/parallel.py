"""`--preprocess-workers`: samples become rows in several processes, in the order they came in."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from mudpuppy.config import TrainingConfig
from mudpuppy.data.samples import Sample
from mudpuppy.data.system_prompt import with_system
from mudpuppy.errors import MudpuppyError
from mudpuppy.loading import Loaded
from mudpuppy.methods.family import find_family


def render_rows(loaded: Loaded, samples: Sequence[Sample], config: TrainingConfig) -> list[Any]:
    """Return the rows of the samples, as `Family.render` makes them in one process.

    Raises:
        DatasetError: a sample cannot be used.
        ModelError: the chat template does not end.
    """
    samples = with_system(samples, config.system_prompt)
    workers = min(config.preprocess_workers, len(samples))
    if workers > 1:
        size = -(-len(samples) // workers)
        parts = [samples[start : start + size] for start in range(0, len(samples), size)]
        render = partial(_render, replace(loaded, model=None), config)
        # Not forked: a tokenizer's threads do not survive in a copy of the process. This process is
        # one of them, since another one must import the libraries first.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers - 1, mp_context=context) as pool:
            others = pool.map(render, parts[1:])
            done = [render(parts[0]), *others]
        rows = [row for part in done if part is not None for row in part]
        if None not in done:
            return rows
    # Also where a part was refused: what is wrong is then said about the whole, as ever.
    return find_family(config.method).render(loaded, samples, config)


def _render(loaded: Loaded, config: TrainingConfig, part: Sequence[Sample]) -> list[Any] | None:
    """Return the rows of one part; None where it was refused, or nothing in it is learnt."""
    try:
        return find_family(config.method).render(loaded, part, config)
    except MudpuppyError:
        return None
