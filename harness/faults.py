"""What can be done to a run, and when: faults that a process arms in itself before it starts.

Nothing is simulated that the machine can do itself: a kill is a signal, a full disk is full, memory
is really refused. Only the moment is chosen, by wrapping the call that it comes before. Whether a
fault happened is written down by the fault, right before it does, so that one that never came is
known.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mudpuppy.files import write_json_atomic
from mudpuppy.provenance import PROVENANCE_FILE

FIRED_FILE = "fired.json"
"""Written into the cell's folder by the fault when it happens."""
GO_FILE = "go"
"""A run that was made to wait goes on when this is in the cell's folder."""
SAVING, CHECKPOINT = "/.saving-", "/checkpoint-"
CLOCK_BACK_S = 86_400.0
"""How far the clock is set back."""
OPEN_BYTES = 20_000
"""Longest file that a limit on files still allows: settings fit, weights and a tokenizer do not."""
SPARE_BYTES = 1 << 24
"""Memory that a process under a limit may still take."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A call that a fault comes before."""

    calls: tuple[str, ...]
    """Module and attribute, such as `mudpuppy.engine:load`; the first that exists, all of them."""
    turn: int = 1
    """Which of the calls, from 1."""
    where: str = ""
    """Text that the path among the call's first two arguments must hold."""
    half: bool = False
    """Whether the file that the call writes is there already, cut in half."""


_WRITE = ("safetensors.torch:serialize_file",)
_MOVE = ("pathlib:Path.rename",)
MOMENTS: Mapping[str, Moment] = {
    "start": Moment(calls=("mudpuppy.preflight:check_output",)),
    "load": Moment(calls=("mudpuppy.engine:load",)),
    "step": Moment(calls=("transformers:Trainer.training_step",), turn=3),
    "evaluation": Moment(calls=("transformers:Trainer.evaluation_loop",), turn=2),
    "checkpoint": Moment(calls=_WRITE, turn=2, where=CHECKPOINT, half=True),
    "checkpoint-optimizer": Moment(
        calls=("transformers:Trainer._save_optimizer_and_scheduler",), turn=2
    ),
    "checkpoint-manifest": Moment(calls=("mudpuppy.methods.keeping:write_manifest",), turn=2),
    "rotation": Moment(calls=("transformers.trainer:rotate_checkpoints",), turn=3),
    "end-of-training": Moment(calls=("mudpuppy.engine:describe_trained",)),
    "save": Moment(calls=_WRITE, where=SAVING, half=True),
    "move": Moment(calls=_MOVE, turn=2, where=SAVING),
    "manifest": Moment(calls=("mudpuppy.engine:finish",)),
    "merge": Moment(calls=("mudpuppy.adapters.shard_merge:_write",), turn=3),
    "merge-move": Moment(calls=("mudpuppy.saving:fsync_folder",), turn=2),
    "merge-manifest": Moment(calls=("mudpuppy.engine:finish",), turn=2),
    "quantise": Moment(calls=("mudpuppy.quant.gptq:quantise_matrix",), turn=2),
    "end": Moment(calls=("mudpuppy.engine:remove_checkpoints",)),
}
"""Moments of a run, by name."""


@dataclass(frozen=True, kw_only=True)
class Arming:
    """What a fault must know of the cell."""

    folder: Path
    """The cell's folder, where it is written down that it happened."""
    output: Path
    """Where the run writes."""
    disk: Path
    """The file system that can be filled; the folder that can be closed."""


Act = Callable[[Arming], None]


def arm(fault: str, moment: Moment, arming: Arming) -> None:
    """Let `fault` happen in this process at `moment`.

    Raises:
        LookupError: there is no such fault, or none of the calls exists.
    """
    if fault in POISONS:
        _wrap("transformers:Trainer.training_step", _poisoning(fault, moment, arming))
        return
    act = ACTS[fault]
    if fault == "read-only":
        drop_override()
    turns = [0]
    for call in moment.calls:
        _wrap(call, lambda original: _acting(original, moment, act, arming, turns))


def note(arming: Arming) -> None:
    """Write down that the fault happens now, and which results were finished by then."""
    finished = [
        str(path.relative_to(arming.output))
        for path in sorted(arming.output.rglob("*.safetensors"))
        if (path.parent / PROVENANCE_FILE).is_file() and SAVING not in str(path)
    ]
    write_json_atomic(arming.folder / FIRED_FILE, {"finished": finished})


def read_note(folder: Path) -> dict[str, Any] | None:
    """Return what the fault wrote down, or None where it never happened."""
    path = folder / FIRED_FILE
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _wrap(call: str, wrapping: Callable[[Any], Any]) -> None:
    """Replace the function that `call` names by what `wrapping` makes of it."""
    module, _, path = call.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    setattr(owner, name, wrapping(getattr(owner, name)))


def _acting(original: Any, moment: Moment, act: Act, arming: Arming, turns: list[int]) -> Any:
    """Return `original` with the fault before its turn."""

    def call(*words: Any, **named: Any) -> Any:
        if moment.where in "\n".join(map(str, words[:2])):
            turns[0] += 1
            if turns[0] == moment.turn:
                if moment.half:
                    _write_half(original, words, named)
                note(arming)
                act(arming)
        return original(*words, **named)

    return call


def _write_half(original: Any, words: Any, named: Any) -> None:
    """Write the whole file, and cut it: so it lies there when a write is interrupted."""
    original(*words, **named)
    path = Path(words[1])
    with path.open("rb+") as handle:
        handle.truncate(path.stat().st_size // 2)


def _send(number: signal.Signals) -> Act:
    return lambda _: os.kill(os.getpid(), number)


def _hang(arming: Arming, *, deaf: bool = False) -> None:
    """Start a process that is in no group of ours, and wait for ever."""
    child = subprocess.Popen(
        [sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=True
    )
    (arming.folder / "grandchild").write_text(str(child.pid), encoding="utf-8")
    if deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(60)


def _pause(arming: Arming) -> None:
    """Wait until the trial says go."""
    while not (arming.folder / GO_FILE).exists():
        time.sleep(0.01)


def _fill_disk(arming: Arming) -> None:
    """Write into the file system of the run until not a byte is left."""
    with (arming.disk / "filler").open("wb", buffering=0) as handle:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    handle.write(b"\0" * size)
            except OSError:
                continue  # a smaller piece may still fit


def _limit_files(_: Arming) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (OPEN_BYTES, OPEN_BYTES))


def _close_folder(arming: Arming) -> None:
    """Take the right to write into the run's folders away."""
    for folder in (arming.disk, arming.output):
        if folder.is_dir():
            folder.chmod(0o500)


def _exhaust_memory(_: Arming) -> None:
    """Let the kernel refuse memory, and ask the library for more than it gives."""
    import torch

    status = Path("/proc/self/status").read_text(encoding="ascii")
    used = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData"))
    limit = used * 1024 + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.empty(limit, dtype=torch.uint8)  # more than what the process holds and has freed


def _set_clock_back(_: Arming) -> None:
    now = time.time
    time.time = lambda: now() - CLOCK_BACK_S


def _nothing(_: Arming) -> None:
    """Do nothing: the damage is done once the run has ended, or before it starts."""


ACTS: Mapping[str, Act] = {
    "kill": _send(signal.SIGKILL),
    "term": _send(signal.SIGTERM),
    "interrupt": _send(signal.SIGINT),
    "hang": _hang,
    "hang-deaf": lambda arming: _hang(arming, deaf=True),
    "second-run": _pause,
    "full-disk": _fill_disk,
    "file-limit": _limit_files,
    "read-only": _close_folder,
    "out-of-memory": _exhaust_memory,
    "clock-back": _set_clock_back,
    "torn-line": _nothing,
}
"""Faults that come before a call, by name."""
POISONS: Mapping[str, float] = {
    "nan-gradient": float("nan"),
    "inf-gradient": float("inf"),
    "nan-loss": float("nan"),
    "inf-loss": float("inf"),
}
"""Faults in the numbers of one step: what its gradient, or its loss, becomes."""


def _poisoning(fault: str, moment: Moment, arming: Arming) -> Callable[[Any], Any]:
    """Return what wraps `Trainer.training_step` so that one batch gives a bad number."""
    turns = [0]

    def wrap(original: Any) -> Any:
        def step(trainer: Any, model: Any, *words: Any, **named: Any) -> Any:
            turns[0] += 1
            if turns[0] != moment.turn:
                return original(trainer, model, *words, **named)
            note(arming)
            if fault.endswith("loss"):
                return _with_bad_loss(trainer, POISONS[fault], original, model, *words, **named)
            loss = original(trainer, model, *words, **named)
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.view(-1)[0] = POISONS[fault]
                    break
            return loss

        return step

    return wrap


def _with_bad_loss(
    trainer: Any, factor: float, original: Any, model: Any, *words: Any, **named: Any
) -> Any:
    """Take one step whose loss is multiplied by NaN or infinity."""
    compute = trainer.compute_loss

    def compute_badly(*inner: Any, **more: Any) -> Any:
        loss = compute(*inner, **more)
        if isinstance(loss, tuple):
            return (loss[0] * factor, *loss[1:])
        return loss * factor

    trainer.compute_loss = compute_badly
    try:
        return original(trainer, model, *words, **named)
    finally:
        del trainer.compute_loss


_CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION = 0x20080522


def drop_override() -> None:
    """Let permissions bind this process, which they do not while it is root's (Linux).

    Raises:
        OSError: the kernel refuses.
    """
    if os.geteuid() != 0 or not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: low words, then high ones
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    for word in (0, 1):
        sets[word] &= ~(1 << _CAP_DAC_OVERRIDE) & 0xFFFFFFFF
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")


_CLONE_NEWNS = 0x00020000
_MS_REC_PRIVATE = 0x4000 | 0x40000


def mount_small_disk(folder: Path, size: int) -> None:
    """Mount a file system of `size` bytes on `folder`, seen by this process and its children.

    Raises:
        OSError: this process may not mount.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={size}".encode()
    failed = (
        libc.unshare(_CLONE_NEWNS)
        or libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None)
        or libc.mount(b"none", os.fsencode(folder), b"tmpfs", 0, options)
    )
    if failed:
        raise OSError(ctypes.get_errno(), f"a disk cannot be mounted on {folder}")
