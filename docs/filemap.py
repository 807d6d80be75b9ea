"""Write the file map of the README from the first line of every module's docstring.

python docs/filemap.py          print it
python docs/filemap.py --write  put it into README.md
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("mudpuppy", "harness", "scenarios", "reports")
BEGIN, END = "<!-- file map: begin -->", "<!-- file map: end -->"
FOLDED = ("harness/probes",)
"""Folders of many files of one kind, shown as one line."""


def caption(path: Path) -> str:
    """Return the first line of a module's docstring, without its full stop."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].rstrip(".")


def file_map() -> str:
    """Return the map as a fenced block, one line a file."""
    lines = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            folder = name.rpartition("/")[0]
            if path.name == "__init__.py":
                lines.append(f"{folder + '/':36} {caption(path)}")
            elif folder not in FOLDED:
                lines.append(f"  {name:34} {caption(path)}")
    return "\n".join(["```text", *lines, "```"])


def insert(readme: str) -> str:
    """Return the README with the map between its two marks."""
    head, _, rest = readme.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{file_map()}\n{END}{tail}"


if __name__ == "__main__":
    target = ROOT / "README.md"
    if sys.argv[1:] == ["--write"]:
        target.write_text(insert(target.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(file_map())
