"""Write docs/probes.md, a page on every probe of the doctor, from the docstrings of the probes.

python docs/probes.py          print it
python docs/probes.py --write  put it into docs/probes.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from harness.findings import Rule  # noqa: E402
from harness.registry import load_own_probes  # noqa: E402
from reports.diagnosis_summary import AREAS, area_of  # noqa: E402

HEAD = """\
# Probes

What `mudpuppy-doctor` looks for, one fault a probe. Written by `python docs/probes.py --write`
from the docstrings of `harness/probes/`; `mudpuppy-doctor explain CODE` prints the same, and finds
a probe by the text of a warning. FM numbers are those of [failure-modes.md](failure-modes.md).
Probes of the area *run* judge what `mudpuppy-pressure` saw of a training run; the others judge
anybody's checkpoint."""


def page(rules: Sequence[Rule]) -> str:
    """Return the whole page."""
    return "\n".join([HEAD, *_tables(rules), *_chapters(rules)]) + "\n"


def _tables(rules: Sequence[Rule]) -> Iterator[str]:
    for area, inside in _by_area(rules):
        yield f"\n**{area}**\n"
        yield "| code | severity | fault | modes |"
        yield "| --- | --- | --- | --- |"
        for one in inside:
            link = f"[{one.code}](#{one.code.lower()}-{one.name})"
            modes = " ".join(one.modes)
            yield f"| {link} | {one.severity} | {_cell(one.caption)} | {modes} |"


def _chapters(rules: Sequence[Rule]) -> Iterator[str]:
    for _, inside in _by_area(rules):
        for one in inside:
            modes = f", {', '.join(one.modes)}" if one.modes else ""
            yield f"\n## {one.code} {one.name}\n"
            yield f"*{one.severity}{modes}.* {one.caption}"
            if not one.paragraphs:
                yield "\n" + one.documentation.partition("\n")[2].strip()
            for heading, text in one.paragraphs.items():
                yield f"\n**{heading}.** {text[:1].upper()}{text[1:]}"


def _by_area(rules: Sequence[Rule]) -> Iterator[tuple[str, list[Rule]]]:
    for area in dict.fromkeys([*AREAS.values(), "other"]):
        inside = [one for one in rules if area_of(one.code) == area]
        if inside:
            yield area, inside


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    text = page(load_own_probes())
    if sys.argv[1:] == ["--write"]:
        (ROOT / "docs/probes.md").write_text(text, encoding="utf-8")
    else:
        print(text, end="")
