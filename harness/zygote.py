"""A fork server of our own: imports once, computes nothing, forks a process for every job.

    python -P -m harness.zygote CHANNEL PRELOAD ENTRY

Started by `harness.pools.warm`, with whom it talks in lines of JSON over the socket with the number
CHANNEL. PRELOAD and ENTRY name functions as `module:function`: the first is called once, the second
in every fork with the folder of the job. The standard library's fork server was no choice: it
swallows a preload that fails, and gives its children neither an output, a limit nor a session.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import importlib
import io
import json
import mmap
import os
import random
import resource
import select
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.process import MARK
from mudpuppy.children import die_with

MARK_ROOM = 4096
"""Bytes that the environment of a zygote keeps free for the mark of its forks."""
IDLE_THREADS = frozenset({"jemalloc_bg_thd"})
"""Threads of libraries that a fork may lose: the allocator of pyarrow restarts its own."""
DEVICE_FILES = ("/dev/nvidia", "/dev/kfd", "/dev/dri/render")
"""Beginnings of the files that a process holds open once it uses a GPU."""
CUDA_NOT_INITIALISED = 3
"""What the CUDA driver answers before `cuInit`."""

Function = Callable[..., Any]


class Unclean(Exception):
    """This process did more than import: what is forked from it may hang."""


def main(argv: list[str] | None = None) -> int:
    """Preload, say so, and serve until the channel closes."""
    number, preload, entry = sys.argv[1:] if argv is None else argv
    mark = _locate_mark()
    channel = socket.socket(fileno=int(number))
    try:
        if preload:
            load(preload)()
        call = load(entry)
        require_clean()
    except BaseException:  # noqa: BLE001 - whatever it was, the other side must hear of it
        _send(channel, {"event": "failed", "traceback": traceback.format_exc()})
        return 1
    gc.collect()
    gc.freeze()
    gc.disable()
    _send(channel, {"event": "ready", "modules": len(sys.modules)})
    _Server(channel, call, mark).serve()
    return 0


def load(name: str) -> Function:
    """Return the function that is written `module:function`."""
    module, _, function = name.partition(":")
    found: Function = getattr(importlib.import_module(module), function)
    return found


def require_clean() -> None:
    """Check that a fork of this process will work: no threads that compute, no device touched.

    Raises:
        Unclean: it would not; the message names what is there.
    """
    threads = sorted(set(_other_threads()) - IDLE_THREADS)
    if threads:
        raise Unclean(f"threads run besides the first one: {', '.join(threads)}")
    devices = sorted(_open_devices())
    if devices:
        raise Unclean(f"a device is open: {', '.join(devices)}")
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise Unclean("torch has initialised CUDA")
    if _driver_is_initialised():
        raise Unclean("the CUDA driver is initialised, though torch does not know")


def _other_threads() -> Iterator[str]:
    """Yield the names of the threads of this process but the first (Linux)."""
    for task in Path("/proc/self/task").glob("*"):
        if task.name != str(os.getpid()):
            with suppress(OSError):  # it ended meanwhile
                yield (task / "comm").read_text(encoding="utf-8").strip()


def _open_devices() -> Iterator[str]:
    for entry in Path("/proc/self/fd").glob("*"):
        with suppress(OSError):
            target = str(entry.readlink())
            if target.startswith(DEVICE_FILES):
                yield target


def _driver_is_initialised() -> bool:
    """Ask the CUDA driver, if something has loaded it; asking it does not initialise it."""
    if sys.platform != "linux":
        return False
    try:
        driver = ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOLOAD)
    except OSError:
        return False
    answer: int = driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int()))
    return answer != CUDA_NOT_INITIALISED


@dataclass(frozen=True)
class _Child:
    """A process that was forked for a job."""

    job: int
    inherited: mmap.mmap
    """Eight bytes shared with it: how much memory it had when it began."""


class _Server:
    """Forks what is asked for and tells what becomes of it; one thread, one loop."""

    def __init__(self, channel: socket.socket, entry: Function, mark: int | None) -> None:
        self._channel = channel
        self._entry = entry
        self._mark = mark
        self._children: dict[int, _Child] = {}
        self._unread = b""
        self._wake, self._wake_end = os.pipe()

    def serve(self) -> None:
        """Serve until the other side is gone."""
        os.set_blocking(self._wake, False)
        os.set_blocking(self._wake_end, False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._wake_end, warn_on_full_buffer=False)
        while True:
            ready, _, _ = select.select([self._channel.fileno(), self._wake], [], [])
            if self._wake in ready:
                with suppress(BlockingIOError):
                    os.read(self._wake, 4096)
                self._reap()
            if self._channel.fileno() in ready:
                received = self._channel.recv(1 << 16)
                if not received:
                    break
                *lines, self._unread = (self._unread + received).split(b"\n")
                for line in lines:
                    self._start(json.loads(line))
        for pid in self._children:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def _start(self, request: dict[str, Any]) -> None:
        """Fork a process for a job, or say why not."""
        number, parent = request["job"], os.getpid()
        try:
            require_clean()
            inherited = mmap.mmap(-1, 8)  # the child writes into it, whenever it comes to run
            pid = os.fork()
        except (Unclean, OSError) as error:
            # What is not fit to be forked never will be; a machine without room may have some soon.
            event = "refused" if isinstance(error, Unclean) else "unforked"
            _send(self._channel, {"event": event, "job": number, "reason": str(error)})
            return
        if pid == 0:
            inherited[:] = _resident_bytes().to_bytes(8, "little")
            self._be_child(request, parent)
        self._children[pid] = _Child(number, inherited)
        begin = {"event": "started", "job": number, "pid": pid, "at_s": time.monotonic()}
        _send(self._channel, begin)

    def _reap(self) -> None:
        """Tell how every child ended that has ended."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._children.pop(pid, None)
            if child is None:  # an import has left it behind
                continue
            peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
            ending = {"event": "ended", "job": child.job, "status": status, "peak_bytes": peak}
            ending["added_bytes"] = max(0, peak - int.from_bytes(child.inherited, "little"))
            ending["cpu_s"] = usage.ru_utime + usage.ru_stime
            _send(self._channel, ending | {"at_s": time.monotonic()})

    def _be_child(self, request: dict[str, Any], parent: int) -> None:
        """Be the process of a job: take on its surroundings, do it, leave at once."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._channel.close()
            os.close(self._wake)
            os.close(self._wake_end)
            _write_mark(self._mark, request["folder"])
            take_on(request, parent)
            code = int(self._entry([request["folder"]]) or 0)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:  # noqa: BLE001 - whatever it is, it must not reach the server's loop
            traceback.print_exc()
        finally:
            with suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)


def take_on(request: dict[str, Any], parent: int) -> None:
    """Give a fork its own session, output, environment, place, limits and random numbers."""
    ask = die_with(parent)
    if ask is not None:
        ask()
    os.setsid()
    _redirect(request["log"])
    os.environ.clear()
    os.environ.update(request["environment"])
    os.environ[MARK] = request["folder"]
    os.chdir(request["scratch"])
    tempfile.tempdir = None
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if request["memory_limit"] is not None:
        limit = request["memory_limit"]
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    random.seed()
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()
    # Warnings that the imports have shown once are shown once more, to this job's log.
    registry: Any = getattr(warnings, "onceregistry", None)
    if registry is not None:
        registry.clear()
    warnings.simplefilter("default", append=True)  # any change makes "shown before" forgotten
    gc.enable()


def _redirect(log: str) -> None:
    """Send both outputs, of Python and of libraries, to the log; nothing comes in."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(output)
    os.close(nothing)
    for stream in (sys.stdout, sys.stderr):
        # The environment of the job cannot say so any more: the interpreter has started long ago.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    faulthandler.enable(file=2)
    faulthandler.register(signal.SIGTERM, file=2, all_threads=True, chain=True)


def _locate_mark() -> int | None:
    """Return where the room for the mark lies in the environment that the kernel shows (Linux).

    `/proc/PID/environ` is the memory that a process was started with. A fork that is to be found by
    its mark must write there; what `os.environ` sets lies elsewhere.
    """
    if sys.platform != "linux" or len(os.environ.get(MARK, "")) < MARK_ROOM:
        return None
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_void_p
    address: int | None = getenv(MARK.encode())
    return address


def _write_mark(address: int | None, folder: str) -> None:
    text = os.fsencode(folder)
    if address is not None and len(text) < MARK_ROOM:
        ctypes.memmove(address, text.ljust(MARK_ROOM, b"\0"), MARK_ROOM)


def _resident_bytes() -> int:
    """Return how much memory this process has; 0 where that is not told."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]
    except OSError:
        return 0
    return int(pages) * resource.getpagesize()


def _send(channel: socket.socket, message: dict[str, Any]) -> None:
    channel.sendall(json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    raise SystemExit(main())
