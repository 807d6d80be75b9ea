"""Virtual environments with chosen releases of the libraries, made by pip and kept in the cache."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from harness.environment import PROJECT
from mudpuppy.cache import cache_root
from mudpuppy.errors import EngineError

Releases = Literal["oldest", "pinned", "newest"]
MOVING = ("transformers", "peft", "trl")
"""Libraries whose releases are tried; torch stays the pinned one in all of them."""
DONE_FILE = "releases.json"
"""Written last into an environment: its packages and their versions."""
_REQUIREMENT = re.compile(r"([A-Za-z0-9_.-]+)\s*>=\s*([0-9][0-9A-Za-z.]*)")


def requirements_of(releases: Releases, project: Path = PROJECT) -> list[str]:
    """Return what pip is asked for.

    Oldest are the floors of pyproject.toml, pinned is constraints.txt, newest is what pip finds
    within the ranges; of what does not move, the ranges are kept.

    Raises:
        EngineError: a library that moves has no floor, or no pin.
    """
    told = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    ranges = {name_of(line): line for line in told["project"]["dependencies"]}
    lines = (project / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {name_of(line): line.strip() for line in lines if "==" in line}
    if releases == "pinned":
        return sorted({**{name: pins.get(name, line) for name, line in ranges.items()}}.values())
    chosen = {**ranges, "torch": pins["torch"]}
    if releases == "oldest":
        for name in MOVING:
            found = _REQUIREMENT.match(ranges[name])
            if found is None:
                raise EngineError(f"pyproject.toml: {ranges[name]} has no oldest release")
            chosen[name] = f"{found[1]}=={found[2]}"
    return sorted(chosen.values())


def name_of(requirement: str) -> str:
    """Return the package that a requirement names."""
    return re.split(r"[\s<>=!~;\[]", requirement.strip(), maxsplit=1)[0].lower()


def make_environment(
    requirements: Sequence[str], *, fresh_for: str = "", root: Path | None = None
) -> tuple[Path, dict[str, str]]:
    """Return the interpreter of an environment with the requirements, and all versions in it.

    It is made once and kept: by its requirements, the Python version and `fresh_for`.

    Args:
        requirements: what pip is asked for.
        fresh_for: a word, such as the date, that makes another environment of the same ranges.
        root: folder of the environments; by default below the cache folder.

    Raises:
        EngineError: pip could not install them; its last words are in the message.
    """
    key = json.dumps([sys.version, *requirements, fresh_for])
    name = hashlib.sha256(key.encode()).hexdigest()[:12]
    folder = (root or cache_root() / "environments") / name
    python = folder / "bin" / "python"
    done = folder / DONE_FILE
    if not done.is_file():
        shutil.rmtree(folder, ignore_errors=True)  # half made
        folder.parent.mkdir(parents=True, exist_ok=True)
        _run([sys.executable, "-m", "venv", str(folder)], "no virtual environment could be made")
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, *requirements], "pip could not install " + " ".join(requirements))
        # for its metadata; the sources are found by PYTHONPATH
        _run([*pip, "--no-deps", "--editable", str(PROJECT)], "pip could not install the project")
        done.write_text(json.dumps(_versions(python)), encoding="utf-8")
    versions: dict[str, str] = json.loads(done.read_text(encoding="utf-8"))
    return python, versions


def _versions(python: Path) -> Mapping[str, str]:
    code = (
        "import json; from importlib.metadata import distributions as d\n"
        "print(json.dumps({x.metadata['Name'].lower(): x.version for x in d()}))"
    )
    told: dict[str, str] = json.loads(_run([str(python), "-c", code], "no versions"))
    return told


def _run(command: Sequence[str], trouble: str) -> str:
    """Run a command and return its output.

    Raises:
        EngineError: it failed.
    """
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    print(done.stdout[-2000:], done.stderr[-2000:], sep="", flush=True)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise EngineError(f"{trouble}: exit code {done.returncode}\n{tail}")
    return done.stdout
