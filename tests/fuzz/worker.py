"""One process that examines damaged checkpoints, thousands of them, and tells what went wrong.

python -m tests.fuzz.worker SEEDS WORD START STOP STEP ROOM
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any

from harness.doctor import diagnose
from harness.findings import Diagnosis, Status
from mudpuppy.errors import MudpuppyError
from reports.commands.doctor_output import FORMATS, Terminal
from tests.fuzz.guard import Guard
from tests.fuzz.mutations import TARGETS, disturb, mutate
from tests.fuzz.seeds import Files, lay_out

LIMIT_S = 2.0
"""Processor time for one input; the driver ends a worker that is silent by the clock."""
LIMIT_BYTES = 300_000_000
"""Memory that one input may add."""
RENDERED = 0.08
"""Share of the inputs whose report is written in every form."""
ALLOWED = frozenset({"subprocess.Popen", "os.posix_spawn", "os.fork", "os.exec"})
"""Chat templates are rendered in a child that can be killed."""


class Hang(BaseException):
    """The time for one input is over; no `except Exception` may swallow it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `Hang` in the block after so many seconds of processor time."""

    def ring(number: int, frame: object) -> None:
        del number, frame
        raise Hang

    signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def peak_bytes() -> int:
    """Return the most memory that was resident since the last reset."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def reset_peak() -> int:
    """Begin to count anew; return what is resident now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return peak_bytes()


def make(seeds: dict[str, Files], word: str, index: int, folder: Path) -> tuple[Path, Random]:
    """Lay out the input of an index, and return what is examined."""
    rng = Random(f"{word}/{index}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    lay_out(mutate(seeds[rng.choice(sorted(seeds))], rng), folder)
    if rng.random() < 0.06:
        disturb(folder, rng)
    files = sorted(path for path in folder.iterdir() if TARGETS.fullmatch(path.name))
    if files and rng.random() < 0.15:
        return rng.choice(files), rng
    return folder, rng


def look(path: Path, rng: Random, guard: Guard, healthy: Path) -> list[str]:
    """Examine one input; return what went wrong, an empty list when nothing did."""
    before = reset_peak()
    base = healthy if rng.random() < 0.1 else None
    wrong: list[str] = []
    guard.start()
    try:
        with time_limit(LIMIT_S):
            diagnosis = diagnose(path, base=base)
    except MudpuppyError:
        diagnosis = None
    except Hang:
        return [f"hangs: more than {LIMIT_S:g} s\n{traceback.format_exc(limit=-12)}"]
    except Exception:  # noqa: BLE001 - any of them is what is looked for
        return [f"raises\n{traceback.format_exc(limit=-12)}"]
    finally:
        touched = guard.stop()
    wrong += [f"touches: {one}" for one in touched]
    more = peak_bytes() - before
    if more > LIMIT_BYTES:
        wrong.append(f"takes {more / 1e6:.0f} MB")
    if diagnosis is not None:
        crashed = [one for one in diagnosis.probes if one.status is Status.CRASHED]
        wrong += [f"crashed: {one.code} {one.name}: {one.reason[:300]}" for one in crashed]
        if rng.random() < RENDERED:
            wrong += render(diagnosis)
    return wrong


def render(diagnosis: Diagnosis) -> list[str]:
    """Write a diagnosis in every form; return what is wrong with the results."""
    wrong = []
    for form, write in FORMATS.items():
        try:
            with time_limit(LIMIT_S):
                text = write(diagnosis, Terminal())
            wrong += [f"{form}: {problem}" for problem in CHECKS.get(form, check_plain)(text)]
        except Hang:
            wrong.append(f"{form}: takes more than {LIMIT_S:g} s")
        except Exception:  # noqa: BLE001 - any of them is what is looked for
            wrong.append(f"{form}: {traceback.format_exc(limit=-6)}")
    return wrong


def check_plain(text: str) -> list[str]:
    """Text for a terminal holds no control characters but line ends."""
    bad = {letter for letter in text if (ord(letter) < 32 and letter != "\n") or ord(letter) == 127}
    bad |= {
        letter for letter in text if letter in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068"
    }
    return [f"control characters {sorted(bad)!r}"] if bad else []


def check_json(text: str) -> list[str]:
    """JSON as everybody reads it: no NaN, no half of a pair."""

    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is no JSON")

    try:
        json.loads(text, parse_constant=refuse)
        text.encode()
    except ValueError as problem:
        return [str(problem)]
    return []


def check_xml(text: str) -> list[str]:
    """XML that parses."""
    from xml.etree import ElementTree

    try:
        ElementTree.fromstring(text)
    except ElementTree.ParseError as problem:
        return [str(problem)]
    return []


class _Elements(HTMLParser):
    """Collects what a page could run or fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.bad: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Look at one element."""
        self.scripts += tag == "script"
        if tag in ("img", "iframe", "object", "embed", "svg:script", "base", "form"):
            self.bad.append(f"<{tag}>")
        self.bad += [f"{name}=" for name, _ in attrs if name.startswith("on") or name == "srcdoc"]
        self.bad += [
            f"{name}={value[:40]}"
            for name, value in attrs
            if name in ("href", "src")
            and value
            and not value.startswith(("#", "https://", "data:"))
        ]


def check_html(text: str) -> list[str]:
    """No element or attribute came from the input."""
    page = _Elements()
    page.feed(text)
    return page.bad + (["several scripts"] if page.scripts > 2 else [])


CHECKS = {"json": check_json, "sarif": check_json, "junit": check_xml, "html": check_html}


def main(words: list[str]) -> int:
    """Examine every index of a range; one line of JSON for each that went wrong."""
    seeds: dict[str, Files] = pickle.loads(Path(words[0]).read_bytes())
    word, start, stop, step = words[1], int(words[2]), int(words[3]), int(words[4])
    room = Path(words[5])
    healthy, folder = room / "healthy", room / "input"
    healthy.mkdir(parents=True, exist_ok=True)
    lay_out(seeds["model"], healthy)
    os.environ["MUDPUPPY_CACHE"] = str(room / "cache")
    for kind in sorted(seeds):  # what is imported on first use
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        lay_out(seeds[kind], folder)
        render(diagnose(folder, base=healthy))
    guard = Guard((room,), ALLOWED)
    for index in range(start, stop, step):
        path, rng = make(seeds, word, index, folder)
        wrong = look(path, rng, guard, healthy)
        print(json.dumps({"index": index, "wrong": wrong}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
