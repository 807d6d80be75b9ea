"""A folder that looks like a repository of the hub: settings whole, weights as headers alone.

A weights file is a sparse file of its true size that begins with its true header. Probes that read
names, sizes and headers work on it as on any folder; whoever wants a value is refused, so that a
hole is never taken for zeros (`harness.evidence.files.header_only`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from harness.evidence.files.header_only import declare_header_only, forget_header_only
from harness.evidence.files.headers import READ_LIMIT_BYTES
from harness.evidence.files.inventory import LONGEST_NAME
from harness.evidence.files.jsonfile import limit_of
from harness.hub.client import HubClient, HubError
from harness.hub.names import HubName
from harness.hub.rooms import hold_room
from mudpuppy.errors import ModelError

LISTING_LIMIT_BYTES = 8_000_000
"""Longest list of files that is read: some 30,000 files. In memory it is 20 times as large."""
FILE_LIMIT = 2_000
"""Files of a repository that are looked at."""
TOTAL_LIMIT_BYTES = 400_000_000
"""What is fetched at most in one visit."""
FIRST_BYTES = 1 << 16
"""What is fetched of a weights file before its header's length is known."""
GGUF_BYTES = 32_000_000
"""What is fetched of a GGUF file, whose header does not say how long it is."""
SETTINGS = (".json", ".jinja", ".jsonl", ".txt", ".model", ".md")
"""Endings of files that are fetched whole, up to the limit that is read of them."""
FOLDERS = re.compile(r"(checkpoint-\d{1,12}|merged|gptq|int8)/[^/]+")
"""Files in folders that the doctor looks into."""


@dataclass(frozen=True, kw_only=True)
class Mirror:
    """What lies here of a repository."""

    path: Path
    """The folder, or the file in it, that stands for the place on the hub."""
    left_out: tuple[str, ...]
    """Files that were not fetched, with the reason."""
    revision: str
    """The commit that was read."""


@contextmanager
def open_mirror(name: HubName, progress: Callable[[str], None]) -> Iterator[Mirror]:
    """Lay out what can be read without the weights, and remove it afterwards.

    Raises:
        HubError: the hub could not be asked.
        ModelError: it has nothing of this name.
    """
    with hold_room() as root:
        declare_header_only(root)
        try:
            yield _Layout(HubClient(), name, root, progress).fill()
        finally:
            forget_header_only(root)


class _Layout:
    """Fills one mirror."""

    def __init__(
        self, client: HubClient, name: HubName, root: Path, progress: Callable[[str], None]
    ) -> None:
        self._client = client
        self._name = name
        self._root = root / re.sub(r"[^\w.-]", "-", name.repository)
        self._progress = progress
        self._left_out: list[str] = []
        self._fetched = 0
        self._commit = name.revision

    def fill(self) -> Mirror:
        """Fetch what the doctor reads."""
        self._progress(f"asking {self._client.endpoint} for {self._name}")
        sizes = self._list()
        wanted = self._choose(sizes)
        self._root.mkdir()
        for number, (path, size) in enumerate(wanted.items(), start=1):
            if number % 20 == 0:
                self._progress(f"read {number} of {len(wanted)} files")
            self._fetch(path, size)
        place = self._name.place
        is_file = place in sizes
        shown = self._root / (place.rpartition("/")[2] if is_file else "")
        return Mirror(path=shown, left_out=tuple(self._left_out), revision=self._commit)

    def _list(self) -> dict[str, int | None]:
        """Return the size of every file of the revision by its path."""
        name = self._name
        revision = quote(name.revision, safe="")
        path = f"/api/models/{name.repository}/revision/{revision}?blobs=true"
        value = self._client.get_json(path, LISTING_LIMIT_BYTES, str(name))
        listed = value.get("siblings") if isinstance(value, dict) else None
        if not isinstance(listed, list):
            raise HubError(f"the hub does not list the files of {name}")
        if isinstance(value.get("sha"), str) and re.fullmatch(r"[0-9a-f]{7,64}", value["sha"]):
            self._commit = value["sha"]
        found: dict[str, int | None] = {}
        for one in listed[:FILE_LIMIT]:
            file = one.get("rfilename") if isinstance(one, dict) else None
            if isinstance(file, str) and _is_plain(file):
                found[file] = _size(one)
            else:
                self._left_out.append(f"{str(file)[:100]!r}: no name of a file")
        if listed and not found:
            raise HubError(
                f"the hub lists {len(listed):,} things for {name}, and none has the name of a file"
            )
        if len(listed) > FILE_LIMIT:
            self._left_out.append(f"{len(listed) - FILE_LIMIT} files beyond the {FILE_LIMIT}th")
        return found

    def _choose(self, sizes: dict[str, int | None]) -> dict[str, int | None]:
        """Return the files of the place that is meant.

        Raises:
            ModelError: nothing lies there.
        """
        place = self._name.place
        if place in sizes:
            return {place: sizes[place]}
        start = f"{place}/" if place else ""
        inside = {path: size for path, size in sizes.items() if path.startswith(start)}
        wanted = {
            path: size
            for path, size in inside.items()
            if "/" not in path.removeprefix(start) or FOLDERS.fullmatch(path.removeprefix(start))
        }
        if not wanted:
            held = ", ".join(sorted({path.partition("/")[0] for path in sizes})[:8])
            where = f"{self._name.repository} has no files in {place or 'its top'}"
            raise ModelError(f"{where}; it holds {held or 'nothing'}")
        return wanted

    def _fetch(self, path: str, size: int | None) -> None:
        name = path.rpartition("/")[2]
        if name.endswith(".safetensors"):
            self._fetch_header(path, size)
        elif name.endswith(".gguf"):
            self._fetch_gguf(path, size)
        elif name.endswith(SETTINGS) and (size or 0) <= limit_of(name):
            piece = self._read(path, 0, limit_of(name) + 1)
            self._write(path, piece, len(piece))
        else:
            self._left_out.append(f"{path}: not fetched")

    def _fetch_header(self, path: str, size: int | None) -> None:
        first = self._client.read(self._url(path), 0, FIRST_BYTES, path)
        size = first.size if first.size is not None else size
        if size is None:
            raise HubError(f"the hub does not say how large {path} is")
        raw = first.raw
        self._count(len(raw))
        length = 8 + int.from_bytes(raw[:8], "little") if len(raw) >= 8 else 0
        if len(raw) < length <= min(size, READ_LIMIT_BYTES + 8):
            raw += self._read(path, len(raw), length)
        self._write(path, raw[: max(length, 8)] if length <= len(raw) else raw, size)

    def _fetch_gguf(self, path: str, size: int | None) -> None:
        """Fetch the head of the one GGUF file that is named; a repository holds dozens of them."""
        if path != self._name.place or size is None:
            self._left_out.append(f"{path}: name it to have it examined, {self._name}/...gguf")
            return
        self._write(path, self._read(path, 0, min(size, GGUF_BYTES)), size)

    def _read(self, path: str, start: int, stop: int) -> bytes:
        raw = self._client.read(self._url(path), start, stop, path).raw
        self._count(len(raw))
        return raw

    def _count(self, number: int) -> None:
        self._fetched += number
        if self._fetched > TOTAL_LIMIT_BYTES:
            raise HubError(f"more than {TOTAL_LIMIT_BYTES / 1e6:.0f} MB of headers and settings")

    def _url(self, path: str) -> str:
        return f"/{self._name.repository}/resolve/{quote(self._commit, safe='')}/{quote(path)}"

    def _write(self, path: str, raw: bytes, size: int) -> None:
        """Write the bytes that are known, and holes for the rest."""
        start = f"{self._name.place}/"
        inside = path.removeprefix(start) if path.startswith(start) else path
        inside = inside if path != self._name.place else path.rpartition("/")[2]
        target = self._root / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with target.open("wb") as out:
                out.write(raw)
                out.truncate(size)
        except (OSError, OverflowError) as problem:  # a size that no file can have, a full disk
            raise HubError(f"{path} cannot be laid out here: {problem}") from None


def _is_plain(path: str) -> bool:
    """Whether a path of the listing stays inside a folder and can be a name here."""
    parts = path.split("/")
    if "\\" in path or any(ord(letter) < 32 or ord(letter) == 127 for letter in path):
        return False
    try:
        fits = all(0 < len(part.encode()) <= LONGEST_NAME for part in parts)
    except UnicodeEncodeError:
        return False
    return fits and not {".", ".."} & set(parts)


def _size(entry: dict[str, Any]) -> int | None:
    """Return the size of a file in a listing: of what is kept elsewhere, the real one."""
    large = entry.get("lfs")
    for value in (large.get("size") if isinstance(large, dict) else None, entry.get("size")):
        if type(value) is int and 0 <= value < 2**50:
            return value
    return None
