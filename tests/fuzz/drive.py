"""Run many damaged checkpoints through the doctor.

python -m tests.fuzz.drive --inputs 200000 -j 2 --seed WORD --keep DIR
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from tests.fuzz.seeds import Files, make_seeds
from tests.fuzz.worker import make

SILENT_S = 15.0
"""Seconds without a word after which a worker is ended: it hangs where no signal reaches it."""
TELL_S = 60.0
"""Seconds between two words about how far a run is."""
TOLD = 1000
"""Inputs of a run up from which it says how far it is."""
ROOT = Path(__file__).parents[2]


@dataclass
class Campaign:
    """What came out."""

    word: str
    """The seed of the whole run."""
    inputs: int = 0
    """Inputs that were examined."""
    failures: dict[int, list[str]] = field(default_factory=dict)
    """What went wrong, by index."""
    seconds: float = 0.0
    """Time of the whole run."""
    stopped: threading.Event = field(default_factory=threading.Event)
    """Set when a person has seen enough."""


def run(inputs: int, jobs: int, word: str, keep: Path | None = None) -> Campaign:
    """Examine so many inputs in several processes."""
    campaign = Campaign(word)
    begun = time.monotonic()
    shared = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="mudpuppy-fuzz-", dir=shared) as folder:
        seeds = make_seeds()
        (Path(folder) / "seeds").write_bytes(pickle.dumps(seeds))
        lanes = [
            threading.Thread(target=_lane, args=(campaign, Path(folder), lane, inputs, jobs))
            for lane in range(jobs)
        ]
        for lane in lanes:
            lane.start()
        _wait(campaign, lanes, inputs, begun)
        if keep is not None:
            for index in campaign.failures:
                _keep(seeds, word, index, Path(folder) / "kept", keep)
    campaign.seconds = time.monotonic() - begun
    return campaign


def _wait(campaign: Campaign, lanes: list[threading.Thread], inputs: int, begun: float) -> None:
    """Wait for all lanes, saying every minute how far they are; Ctrl-C ends them early."""
    try:
        while any(lane.is_alive() for lane in lanes):
            for lane in lanes:
                lane.join(TELL_S / len(lanes))
            if inputs > TOLD:
                spent = time.monotonic() - begun
                done = f"{campaign.inputs:,} of {inputs:,}, {len(campaign.failures)} failures"
                print(f"{spent:.0f} s: {done}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        campaign.stopped.set()
        for lane in lanes:
            lane.join()


def _lane(campaign: Campaign, folder: Path, lane: int, inputs: int, jobs: int) -> None:
    """Keep one worker at work; where it dies, its input is a failure and another goes on."""
    start = lane
    while start < inputs and not campaign.stopped.is_set():
        room = folder / f"room-{lane}"
        words = [sys.executable, "-m", "tests.fuzz.worker", str(folder / "seeds"), campaign.word]
        words += [str(start), str(inputs), str(jobs), str(room)]
        errors = (folder / f"errors-{lane}").open("w+b")
        child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT)
        last = _listen(campaign, child)
        child.kill()
        child.wait()
        errors.seek(0)
        said = errors.read().decode("utf-8", "replace")[-600:]
        errors.close()
        done = start if last is None else last + jobs
        if done >= inputs or campaign.stopped.is_set():
            return
        if last is None and start == lane and "Traceback" in said:
            campaign.failures[start] = [f"the worker does not start: {said}"]
            return
        campaign.failures[done] = [f"ends the process, or hangs for {SILENT_S:g} s: {said}"]
        start = done + jobs


def _listen(campaign: Campaign, child: subprocess.Popen[bytes]) -> int | None:
    """Take down what a worker says until it falls silent; return the last index it finished."""
    lines: queue.Queue[bytes] = queue.Queue()
    assert child.stdout is not None
    reader = threading.Thread(target=_read, args=(child.stdout, lines), daemon=True)
    reader.start()
    last: int | None = None
    patience = 90.0  # the first word comes after all imports
    while True:
        try:
            line = lines.get(timeout=patience)
        except queue.Empty:
            return last
        if not line or campaign.stopped.is_set():
            return last
        told: dict[str, Any] = json.loads(line)
        last, patience = int(told["index"]), SILENT_S
        campaign.inputs += 1
        if told["wrong"]:
            campaign.failures[last] = told["wrong"]
            print(f"{campaign.word}/{last}: {told['wrong'][0][:200]}", file=sys.stderr, flush=True)


def _read(stream: Any, lines: queue.Queue[bytes]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(b"")


def _keep(seeds: dict[str, Files], word: str, index: int, room: Path, keep: Path) -> None:
    """Save a failing input, so that it can be looked at and becomes a test."""
    path, _ = make(seeds, word, index, room)
    keep.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(keep / f"{word}-{index}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = (path.name if path != room else "").encode("utf-8", "surrogateescape")
        for file in sorted(room.rglob("*")):
            if file.is_file() and not file.is_symlink():
                name = os.fsencode(file.relative_to(room)).decode("utf-8", "replace")
                archive.writestr(name, file.read_bytes())


def main() -> int:
    """Run a campaign and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=200_000)
    parser.add_argument("-j", "--jobs", type=int, default=2)
    parser.add_argument("--seed", default=str(date.today()))
    parser.add_argument("--keep", type=Path, help="folder for failing inputs")
    arguments = parser.parse_args()
    found = run(arguments.inputs, arguments.jobs, arguments.seed, arguments.keep)
    kinds = Counter(wrong[0].splitlines()[-1][:150] for wrong in found.failures.values())
    for index, wrong in sorted(found.failures.items())[:20]:
        print(f"{found.word}/{index}: " + "\n  ".join(wrong))
    for kind, number in kinds.most_common():
        print(f"{number:6}  {kind}")
    rate = found.inputs / max(found.seconds, 1e-9)
    print(
        f"{found.inputs:,} inputs of seed {found.word} in {found.seconds:.0f} s "
        f"({rate:.0f} a second): {len(found.failures)} failures"
    )
    return 1 if found.failures or found.inputs < arguments.inputs else 0


if __name__ == "__main__":
    sys.exit(main())
