"""Images of a dataset: find them in their three spellings, and prove that they can be opened.

1. a column `images`, and parts `{"type": "image"}` in the contents;
2. parts that name the image: `{"type": "image", "image" | "path" | "url": ...}`, or `image_url`;
3. a column `image` (or `images`), and `<image>` in the texts.

Where a column has images and no content says where they belong, they stand before the first text
of the user. Nothing is fetched from a network.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mudpuppy.data.problems import LineProblem, kind_of
from mudpuppy.data.samples import Message
from mudpuppy.errors import clip, near_names, shown

PLACEHOLDER = "<image>"
"""What stands in a text for the next image of the column."""
_CHECK_SIDE = 256
"""Pixels that a JPEG is decoded to when it is only checked: its whole file is read all the same."""


def image_source(reference: str) -> str | io.BytesIO:
    """Return what `PIL.Image.open` takes for an image that an `ImageSample` names.

    Args:
        reference: a path, or a `data:` URL.

    Raises:
        ValueError: a `data:` URL that is not base64.
    """
    return io.BytesIO(_inline(reference)) if reference.startswith("data:") else reference


def _inline(url: str) -> bytes:
    """Return the bytes of a `data:` URL.

    Raises:
        ValueError: it is not base64.
    """
    head, comma, data = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise ValueError("a data: URL is expected to hold base64")
    return base64.b64decode(unquote(data), validate=True)


class Gallery:
    """The images beside a dataset; every file is checked once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._checked: set[str] = set()

    def find(self, value: Any, where: str) -> str:
        """Return the path, or the `data:` URL, of an image that can be opened.

        Raises:
            LineProblem: it is missing, damaged, or lies on a network.
        """
        if isinstance(value, Mapping):  # as `datasets` writes images, or as chat interfaces do
            names = ("bytes", "path", "url", "image")
            given = next((value[n] for n in names if value.get(n) is not None), None)
            return self.find(given, where) if not isinstance(given, Mapping) else self._bad(where)
        if isinstance(value, bytes):
            data = base64.b64encode(value).decode()
            return self._prove(f"data:image;base64,{data}", io.BytesIO(value), where, "")
        if not isinstance(value, str) or not value:
            raise LineProblem(f"{where} is {kind_of(value)} instead of the path of an image")
        if value.startswith(("http://", "https://")):
            raise LineProblem(
                f"{where} is {shown(value)}: nothing is fetched while training",
                hint="download the images, and name their paths",
            )
        if value.startswith("data:"):
            try:
                return self._prove(value, io.BytesIO(_inline(value)), where, "")
            except ValueError as error:
                raise LineProblem(f"{where} is no image: {error}") from None
        return self._file(value, where)

    def _bad(self, where: str) -> str:
        raise LineProblem(f"{where} is an object inside an object, and no image")

    def _file(self, name: str, where: str) -> str:
        path = self._folder / unquote(name.removeprefix("file://")) if "://" in name else None
        path = path or self._folder / Path(name).expanduser()
        if str(path) in self._checked:
            return str(path)
        try:
            if not path.is_file():
                beside = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
                near = near_names(path.name, beside)
                raise LineProblem(f"{where}: there is no image {shown(str(path))}{near}")
            with path.open("rb") as handle:
                self._prove(str(path), handle, where, f" {shown(str(path))}")
        except LineProblem:
            raise
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise LineProblem(f"{where}: {shown(str(path))} cannot be read: {reason}") from None
        self._checked.add(str(path))
        return str(path)

    def _prove(self, reference: str, handle: Any, where: str, name: str) -> str:
        """Decode the image and throw it away: a header alone does not tell that the rest is there.

        Returns:
            `reference`, for the caller's convenience.
        """
        from PIL import Image

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(handle) as image:
                    image.draft("RGB", (_CHECK_SIDE, _CHECK_SIDE))
                    image.load()
        except Exception as error:  # noqa: BLE001 - decoders of damaged files raise anything
            reason = clip(f"{type(error).__name__}: {error}")
            raise LineProblem(f"{where}: the image{name} cannot be opened: {reason}") from None
        return reference


def column_images(row: Mapping[str, Any]) -> list[Any]:
    """Return what the columns `images` and `image` of a row hold.

    Raises:
        LineProblem: both do, or `images` is no list.
    """
    one, many = row.get("image"), row.get("images")
    if many is None:
        return [] if one is None else [one]
    if one is not None:
        raise LineProblem("has both 'image' and 'images'")
    if not isinstance(many, list):
        raise LineProblem(f"'images' is {kind_of(many)} instead of a list of paths")
    return many


def place_images(
    messages: Sequence[Message], column: Sequence[Any], gallery: Gallery
) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """Return messages whose contents are lists of parts, and their images in the same order.

    Raises:
        LineProblem: the images of the column are not as many as the places for them, an image
            belongs to the assistant, or one cannot be opened.
    """
    parts = [_parts(message, bool(column)) for message in messages]
    places = sum(_is_open(part) for one in parts for part in one)
    if column and not places:
        first = next((i for i, m in enumerate(messages) if m["role"] == "user"), None)
        if first is None:
            raise LineProblem("has images and no message of the user that they could stand in")
        parts[first] = [{"type": "image"} for _ in column] + parts[first]
        places = len(column)
    if places != len(column):
        have, want = _count(len(column), "image"), _count(places, "place")
        raise LineProblem(f"has {have} in its column, and {want} for them in its messages")
    waiting: Iterator[tuple[int, Any]] = iter(enumerate(column))
    images: list[str] = []
    result = []
    for index, (message, one) in enumerate(zip(messages, parts, strict=True)):
        if message["role"] == "assistant" and any(p["type"] != "text" for p in one):
            raise LineProblem(f"messages[{index}] is an answer with an image, which is not learnt")
        for part in one:
            if _is_open(part):
                number, value = next(waiting)
                images.append(gallery.find(value, f"images[{number}]"))
            elif part["type"] != "text":
                images.append(gallery.find(_payload(part), f"messages[{index}].content"))
        result.append({"role": message["role"], "content": [_clean(part) for part in one]})
    return tuple(result), tuple(images)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _parts(message: Message, has_column: bool) -> list[dict[str, Any]]:
    """Return a content as a list of parts; `<image>` is a part where a column has images."""
    content = message["content"]
    if not isinstance(content, str):
        return list(content)
    if not has_column or message["role"] == "assistant":
        return [{"type": "text", "text": content}]
    parts: list[dict[str, Any]] = []
    for index, text in enumerate(content.split(PLACEHOLDER)):
        if index:
            parts.append({"type": "image"})
            text = text.removeprefix("\n")  # LLaVA's files write "<image>\nquestion"
        if text:
            parts.append({"type": "text", "text": text})
    return parts or [{"type": "text", "text": ""}]


def _payload(part: Mapping[str, Any]) -> Any:
    names = ("image", "path", "url", "image_url", "bytes")
    return next((part[name] for name in names if part.get(name) is not None), None)


def _is_open(part: Mapping[str, Any]) -> bool:
    """Whether the part is a place for the next image of the column."""
    return part["type"] != "text" and _payload(part) is None


def _clean(part: Mapping[str, Any]) -> dict[str, str]:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    return {"type": "image"}
