"""Every example in docs/data.md is what the page says it is."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from mudpuppy.data.formats import FORMATS
from mudpuppy.data.read import read_dataset
from mudpuppy.data.samples import KINDS, KINDS_OF_METHOD
from mudpuppy.errors import DatasetError

PAGE = (Path(__file__).parents[3] / "docs/data.md").read_text(encoding="utf-8")
PARTS = re.compile(
    r"```json\n(?P<example>.*?)\n```|^Becomes `(?P<kind>\w+)`, for (?P<methods>.*)\.$", re.M
)


def documented() -> list[tuple[str, str, tuple[str, ...]]]:
    """Return every example with the kind and the methods that the page names below it."""
    found, waiting = [], []
    for part in PARTS.finditer(PAGE):
        if part["example"]:
            waiting.append(part["example"])
            continue
        found += [(line, part["kind"], tuple(part["methods"].split(", "))) for line in waiting]
        waiting = []
    assert not waiting
    return found


@pytest.mark.parametrize(("line", "kind", "methods"), documented())
def test_an_example_is_detected_as_the_page_says(tmp_path: Path, line, kind, methods):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "cat.png")
    path = tmp_path / "d.jsonl"
    path.write_text(line + "\n")

    read = read_dataset(path)

    assert kind == read.kind
    assert isinstance(read.samples[0], KINDS[kind])
    assert set(methods) == {m for m, kinds in KINDS_OF_METHOD.items() if kind in kinds}
    for method, kinds in KINDS_OF_METHOD.items():
        if kind in kinds:
            assert read == read_dataset(path, method)
        else:
            with pytest.raises(DatasetError, match=f"--method {method} learns from"):
                read_dataset(path, method)


def test_the_page_has_every_format_in_the_order_of_detection():
    titles = [title.lower() for title in re.findall(r"^### (.*)$", PAGE, re.M)]
    names = [one.name.lower() for one in FORMATS]

    assert names == [title for title in titles if title in names]


@pytest.mark.parametrize("one", FORMATS, ids=lambda one: one.name)
def test_the_examples_in_messages_are_what_they_stand_for(tmp_path: Path, one):
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(json.loads(one.example)))

    assert one.kind == read_dataset(path).kind
