"""Find the largest batch or sequence that fits into a given memory, and what the estimate says.

Every size is tried in a phase of its own, which may die: out of memory, a signal and an exit are
answers. On a CPU the phase first trains the smallest size, so that the libraries have taken what
they take, and then may take `memory` bytes more (RLIMIT_DATA). On a GPU the allocator is limited.
"""

from __future__ import annotations

import ctypes
import gc
import json
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from harness.facts.trials import Attempt, Limits
from harness.observations import Observations
from harness.phases import PhaseEnded, run_phase
from harness.trials.order import Order
from harness.trials.search import find_largest
from mudpuppy.config import TrainingConfig
from mudpuppy.config_check import load_config
from mudpuppy.errors import EngineError
from mudpuppy.files import write_json_atomic

MEMORY_WORDS = ("can't allocate", "cannot allocate", "out of memory", "bad_alloc", "new thread")
"""What libraries say where memory ran out, in lower case."""
SMALLEST = {"batch_size": 1, "max_length": 16}
"""Sizes at which the libraries take what they take anyway."""
WORD = " pond"
"""What texts are made of."""


class LimitOptions(BaseModel):
    """Settings of the trial, as a scenario's `options` give them."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    quantity: Literal["batch_size", "max_length"]
    """What is made larger."""
    memory: int | None = Field(default=None, ge=1 << 20)
    """Bytes that training may take; by default, the memory of the device."""
    start: int = Field(default=1, ge=1)
    """First size that is tried; a sequence of fewer than 16 tokens holds no answer."""
    ceiling: int = Field(ge=1)
    """Largest size that is tried."""
    resolution: float = Field(default=0.1, gt=0)
    """Share of the result that the search may leave open."""
    max_probes: int = Field(default=20, ge=4)
    """Runs at most."""
    factor: float = Field(default=2.0, gt=1)
    """Ratio of what fits and what the estimate says, either way, that is not yet a finding."""


def perform(order: Order) -> Observations:
    """Search the limit and predict it.

    Raises:
        EngineError: a run failed for another reason than memory.
        UsageError: the engine refuses the settings.
    """
    options = LimitOptions.model_validate(order.options)
    order.import_engine()
    run_phase("predicting", lambda: _predict(order, options))
    told = json.loads((order.folder / "predicted.json").read_text(encoding="utf-8"))
    found = find_largest(
        lambda value: _attempt(order, options, value),
        start=options.start,
        ceiling=options.ceiling,
        resolution=options.resolution,
        max_probes=options.max_probes,
    )
    limits = Limits(
        quantity=options.quantity,
        memory_bytes=told["memory"],
        largest=found.largest,
        smallest_refused=found.smallest_refused,
        predicted=told["predicted"],
        ceiling=options.ceiling,
        factor=options.factor,
        monotone=found.monotone,
        max_probes=options.max_probes,
        attempts=found.attempts,
    )
    return Observations(ending="measured", trial=asdict(limits))


def _attempt(order: Order, options: LimitOptions, value: int) -> Attempt:
    """Run one size in a phase and return how it ended."""
    answer = order.folder / "attempt.json"
    answer.unlink(missing_ok=True)
    shutil.rmtree(order.folder / "run", ignore_errors=True)  # of a run that died
    try:
        run_phase(f"{options.quantity} {value}", lambda: _try(order, options, value, answer))
    except PhaseEnded as error:
        if not answer.exists():
            how = str(error).partition(": ")[2].removesuffix(", see above")
            return Attempt(value=value, fits=False, how=how)
    told = json.loads(answer.read_text(encoding="utf-8"))
    if told.get("error"):
        raise EngineError(f"{options.quantity} {value} failed, and not for memory: {told['error']}")
    return Attempt(value=value, fits=told["how"] == "fits", how=told["how"])


def _try(order: Order, options: LimitOptions, value: int, answer: Path) -> None:
    """Be the phase: train the smallest size freely, then this one within the limit."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    told, is_limited = {"how": "fits"}, False
    try:
        _train(order, _config(order, options, SMALLEST[options.quantity]))
        config = _config(order, options, value)
        _give_back_free_memory()
        is_limited = True
        _limit(config, options.memory)
        _train(order, config)
    except Exception as error:  # noqa: BLE001 - memory runs out anywhere, in many words
        resource.setrlimit(resource.RLIMIT_DATA, before)
        is_answer = is_limited and is_memory_error(error)
        told = {"how": "out of memory"} if is_answer else {"error": repr(error)}
    resource.setrlimit(resource.RLIMIT_DATA, before)
    write_json_atomic(answer, told)


def _give_back_free_memory() -> None:
    with suppress(AttributeError):  # another libc than glibc has no such call
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)


def is_memory_error(error: BaseException) -> bool:
    """Return whether an error, or one that it was raised from, says that memory ran out."""
    return any(
        isinstance(one, MemoryError)
        or type(one).__name__ == "OutOfMemoryError"
        or any(word in str(one).lower() for word in MEMORY_WORDS)
        for one in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _limit(config: TrainingConfig, memory: int | None) -> None:
    """Let this process take `memory` bytes more: on the host, or by the device's allocator."""
    torch: Any = sys.modules["torch"]
    if config.device != "cpu" and torch.cuda.is_available():
        if memory is not None:
            from mudpuppy.estimate.predict import DEVICE_OVERHEAD

            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(max(0, memory - DEVICE_OVERHEAD) / total)
        return
    if memory is None:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (data_bytes() + memory, hard))


def data_bytes() -> int:
    """Return the private writable memory of this process, as RLIMIT_DATA counts it (Linux)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "VmData":
            return int(value.split()[0]) * 1024
    raise EngineError("/proc/self/status does not say how much memory this process has")


def _train(order: Order, config: TrainingConfig) -> None:
    """Train two steps at the size, since the optimizer's states come with the first."""
    order.train(config, records_dir=order.folder, say=lambda text: None)
    shutil.rmtree(config.output)


def _config(order: Order, options: LimitOptions, value: int) -> TrainingConfig:
    """Return the settings for a size, with a dataset whose rows are as long as they may be."""
    settings = {**order.config, options.quantity: value, "max_steps": 2}
    dataset = order.folder / "rows.jsonl"
    write_rows(dataset, settings)
    return load_config({**settings, "dataset": dataset, "output": order.folder / "run"})


def write_rows(path: Path, settings: dict[str, Any]) -> None:
    """Write texts of `max_length` tokens, end included, enough for two batches."""
    from mudpuppy.loading import load_tokenizer
    from mudpuppy.tiny import resolve_model

    tokenizer = load_tokenizer(resolve_model(settings["model"]))
    words = settings["max_length"]
    while len(tokenizer("The" + WORD * words)["input_ids"]) >= settings["max_length"]:
        words -= 1
    row = json.dumps({"text": "The" + WORD * words}) + "\n"
    path.write_text(row * 2 * settings["batch_size"], encoding="utf-8")


def _predict(order: Order, options: LimitOptions) -> None:
    """Be the phase that asks the estimate, which computes with torch."""
    from mudpuppy.estimate.advice import fits
    from mudpuppy.estimate.command import Predictor, read_model_settings

    config = load_config({**order.config, "output": order.folder / "run"})
    torch: Any = sys.modules["torch"]
    on_cpu = config.device == "cpu" or not torch.cuda.is_available()
    memory = options.memory
    if memory is None:
        if on_cpu:
            raise EngineError("on a CPU, options.memory must say how much may be taken")
        memory = int(torch.cuda.get_device_properties(0).total_memory)
    settings = read_model_settings(config.model, config.trust_remote_code)
    predictor = Predictor(on_cpu=on_cpu)

    def is_enough(value: int) -> bool:
        changed = config.model_copy(update={options.quantity: value})
        return fits(predictor(settings, changed), memory)

    write_json_atomic(
        order.folder / "predicted.json",
        {"memory": memory, "predicted": last_that(is_enough, options.ceiling)},
    )


def last_that(holds: Any, ceiling: int) -> int:
    """Return the largest number up to `ceiling` of which `holds` is true, which must be monotone.

    0 where it does not even hold for 1.
    """
    low, high = 0, ceiling + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
