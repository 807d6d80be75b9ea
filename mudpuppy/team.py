"""The processes that train together: who writes, and how all of them stop for the same reason.

torchrun and accelerate say in the environment how many there are. The first one prints, locks the
output folder and writes; the others compute and wait.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from mudpuppy.errors import EngineError, MudpuppyError, UsageError

T = TypeVar("T")
PATIENCE = timedelta(days=7)
"""How long processes wait for one: saving or merging takes longer than NCCL's ten minutes."""
_waiting: list[Any] = []
"""The group that `agree` waits in, once the processes have joined."""


def rank() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Return the number of this process on this machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_size() -> int:
    """Return how many processes train together on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", str(size())))


def size() -> int:
    """Return how many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Return whether this is the process that prints and writes."""
    return rank() == 0


def join(*, on_cpu: bool) -> None:
    """Connect to the other processes, where there are any.

    Args:
        on_cpu: whether only the processor is asked for; a GPU that is there is then left alone.
    """
    if size() > 1:
        from accelerate import PartialState

        PartialState(cpu=on_cpu)
        import torch.distributed as dist

        _waiting[:] = [dist.new_group(backend="gloo", timeout=PATIENCE)]


def leave() -> None:
    """Disconnect, so that nobody waits for a process that has gone."""
    if size() > 1:
        import torch.distributed as dist

        _waiting.clear()
        if dist.is_initialized():
            dist.destroy_process_group()


def agree(work: Callable[[], T]) -> T:
    """Do something in every process; where it fails in one, it fails in all, for the same reason.

    Raises:
        MudpuppyError: the failure of the first process that failed.
        Exception: its own failure, where this process is the first that failed.
    """
    if size() == 1:
        return work()
    import torch.distributed as dist

    failure: Exception | None = None
    value: Any = None
    try:
        value = work()
    except Exception as error:  # noqa: BLE001 - a failure left out lets the others wait for ever
        failure = error
    mine = None if failure is None else _told(failure)
    everyone: list[Any] = [None] * size()
    dist.all_gather_object(everyone, mine, group=next(iter(_waiting), None))
    failed = [(one, number) for number, one in enumerate(everyone) if one is not None]
    if not failed:
        done: T = value
        return done
    (code, message, hint), number = failed[0]
    if failure is not None and number == rank():
        raise failure
    kind = UsageError if code == UsageError.exit_code else EngineError
    retold = kind(message if number == 0 else f"process {number}: {message}", hint=hint)
    retold.is_own = False
    raise retold


def _told(failure: Exception) -> tuple[int, str, str]:
    """Return exit code, message and hint of a failure, as the other processes tell it."""
    if isinstance(failure, MudpuppyError):
        return failure.exit_code, failure.message, failure.hint
    return EngineError.exit_code, f"{type(failure).__name__}: {failure}", ""


def first_only(work: Callable[[], T]) -> T | None:
    """Do something in the first process alone, while the others wait; all fail where it fails."""
    return agree(lambda: work() if is_first() else None)


def told_by_first(work: Callable[[], T]) -> T:
    """Do something in the first process alone, and tell the others its result; all wait for it.

    Raises:
        MudpuppyError: the first process failed.
    """
    told: list[Any] = [first_only(work)]
    if size() > 1:
        import torch.distributed as dist

        dist.broadcast_object_list(told, src=0, group=next(iter(_waiting), None))
    value: T = told[0]
    return value
