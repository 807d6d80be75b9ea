"""Damage that is done to what a stopped run left, before it is resumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from harness.remains import CHECKPOINT_MANIFEST, STEPS_FILE


def newest_checkpoints(output: Path) -> list[Path]:
    """Return the checkpoints of a run, newest first."""
    found = [path for path in output.glob("checkpoint-*") if path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)


def _cut(path: Path) -> None:
    """Cut a file in half."""
    with path.open("rb+") as handle:
        handle.truncate(path.stat().st_size // 2)


def _flip(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    with path.open("rb+") as handle:
        handle.seek(path.stat().st_size // 2)
        byte = handle.read(1)
        handle.seek(-1, 1)
        handle.write(bytes([byte[0] ^ 1]))


def _weights(folder: Path) -> Path:
    return next(iter(sorted(folder.glob("*.safetensors"))))


def _truncate(output: Path) -> None:
    _cut(newest_checkpoints(output)[0] / "optimizer.pt")


def _truncate_weights(output: Path) -> None:
    _cut(_weights(newest_checkpoints(output)[0]))


def _flip_bit(output: Path) -> None:
    _flip(_weights(newest_checkpoints(output)[0]))


def _unlist(output: Path) -> None:
    (newest_checkpoints(output)[0] / CHECKPOINT_MANIFEST).unlink()


def _truncate_all(output: Path) -> None:
    for folder in newest_checkpoints(output):
        _cut(folder / "optimizer.pt")


def _tear_log(output: Path) -> None:
    """Cut the last line of the step log in its middle, as a machine that went off leaves it."""
    path = output / STEPS_FILE
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])


DAMAGES: Mapping[str, Callable[[Path], None]] = {
    "truncated": _truncate,
    "weights-truncated": _truncate_weights,
    "bit-flipped": _flip_bit,
    "manifest-missing": _unlist,
    "all-truncated": _truncate_all,
    "log-torn": _tear_log,
}
"""What is done to the output folder of a stopped run, by name."""


def damage(name: str, output: Path) -> None:
    """Do one damage to what lies in `output`.

    Raises:
        LookupError: there is no such damage.
        OSError: what it is done to is not there.
    """
    DAMAGES[name](output)


def tear_dataset(whole: Path, torn: Path) -> int:
    """Write `torn`, which ends in the middle of the last line of `whole`; return that line."""
    lines = whole.read_bytes().rstrip(b"\n").splitlines(keepends=True)
    torn.write_bytes(b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])
    return len(lines)
