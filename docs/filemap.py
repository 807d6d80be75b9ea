"""Write the maps of the project from the first lines of its docstrings.

python docs/filemap.py          print the map of all files
python docs/filemap.py --write  write docs/files.md (every file) and rooms of README.md (folders)
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("mudpuppy", "harness", "scenarios", "reports")
BEGIN, END = "<!-- file map: begin -->", "<!-- file map: end -->"
FOLDED = ("harness/probes",)
"""Folders of many files of one kind, shown without them."""
HEAD = """# Every file

One line each, from its docstring; `python docs/filemap.py --write` writes this page. The probes,
one file for each failure, are in [probes.md](probes.md).
"""


def caption(path: Path) -> str:
    """Return the first line of a module's docstring, without its full stop."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].rstrip(".")


def _modules() -> Iterator[tuple[str, str, Path]]:
    """Yield the folder, the name and the path of every module, in order."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            yield name.rpartition("/")[0], name, path


def file_map() -> str:
    """Return the map of all files as a fenced block."""
    lines = []
    for folder, name, path in _modules():
        if path.name == "__init__.py":
            lines.append(f"{folder + '/':36} {caption(path)}")
        elif not folder.startswith(FOLDED):
            lines.append(f"  {name:34} {caption(path)}")
    return "\n".join(["```text", *lines, "```"])


def room_map() -> str:
    """Return the map of the folders as a fenced block."""
    rooms = [
        f"{folder + '/':28} {caption(path)}"
        for folder, _, path in _modules()
        if path.name == "__init__.py"
    ]
    return "\n".join(["```text", *rooms, "```"])


def insert(readme: str) -> str:
    """Return the README with the map of the folders between its two marks."""
    head, _, rest = readme.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{room_map()}\n{END}{tail}"


def page() -> str:
    """Return docs/files.md."""
    return f"{HEAD}\n{file_map()}\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        target = ROOT / "README.md"
        target.write_text(insert(target.read_text(encoding="utf-8")), encoding="utf-8")
        (ROOT / "docs/files.md").write_text(page(), encoding="utf-8")
    else:
        print(file_map())
