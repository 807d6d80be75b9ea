"""The house rules: who may import whom, how long a file is, and what the README says of it."""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("mudpuppy", "scenarios", "harness", "reports")
"""From the bottom to the top: a package may import those before it."""
MAX_LINES = 400
GROUND_FLOOR = (
    "features",
    "ruleform",
    "rules_devices",
    "rules_unlearning",
    "rules",
    "path_fault",
    "config",
    "config_check",
    "errors",
    "presets.loader",
    "records",
    "yamlfile",
)
HEAVY = ("torch", "transformers", "peft", "trl", "datasets", "accelerate")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    return name.removesuffix(".__init__")


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    """Yield every module that the file imports, by its full name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = _run_on_import(tree) if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _run_on_import(tree: ast.Module) -> Iterator[ast.stmt]:
    for node in tree.body:
        is_typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If | ast.Try) and not is_typing:
            yield from (n for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom))


def starts_with(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_down_and_never_up(path: Path):
    level = PACKAGES.index(path.relative_to(ROOT).parts[0])
    above = PACKAGES[level + 1 :]

    assert not [name for name in imports(path) if starts_with(name, above)]


@pytest.mark.parametrize("name", GROUND_FLOOR)
def test_the_ground_floor_imports_only_itself(name: str):
    allowed = tuple(f"mudpuppy.{one}" for one in GROUND_FLOOR)
    found = list(imports(ROOT / "mudpuppy" / f"{name.replace('.', '/')}.py"))

    assert not [n for n in found if starts_with(n, PACKAGES) and not starts_with(n, allowed)]
    assert not [n for n in found if starts_with(n, HEAVY)]


PROBE_MAY = (
    "harness.registry",
    "harness.findings",
    "harness.facts",
    "harness.observations",
    "harness.weighing",
    "mudpuppy.records",
    "mudpuppy.tuning",
)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "harness/probes").rglob("[a-z]*.py")), ids=module_name
)
def test_probes_judge_evidence_and_import_nothing_that_measures(path: Path):
    found = list(imports(path))

    assert not [n for n in found if starts_with(n, PACKAGES) and not starts_with(n, PROBE_MAY)]
    assert not [n for n in found if starts_with(n, (*HEAVY, "numpy"))]


def test_only_the_worker_imports_the_engine():
    above = [path for path in FILES if path.relative_to(ROOT).parts[0] != "mudpuppy"]
    found = [
        path.name
        for path in above
        if any(starts_with(n, ("mudpuppy.engine",)) for n in imports(path))
    ]

    assert ["worker.py"] == found


def test_only_behaviour_measures_with_torch_and_only_when_asked():
    evidence = sorted((ROOT / "harness/evidence").rglob("*.py"))
    with_torch = {
        path.parent.name for path in evidence if any(starts_with(n, HEAVY) for n in imports(path))
    }
    at_import = [
        p.name
        for p in evidence
        if any(starts_with(n, HEAVY) for n in imports(p, top_level_only=True))
    ]

    assert with_torch == {"behaviour"}
    assert [] == at_import


@pytest.mark.parametrize("path", sorted((ROOT / "reports").glob("*.py")), ids=module_name)
def test_writers_know_results_and_no_machinery(path: Path):
    results = ("harness.results", "harness.findings", "harness.history_rows")
    results += ("harness.mutant_results", "harness.selftest.results", "harness.selftest.modes")
    allowed = (*results, "mudpuppy.records", "reports")
    found = list(imports(path))

    assert not [n for n in found if starts_with(n, PACKAGES) and not starts_with(n, allowed)]
    assert not [n for n in found if starts_with(n, HEAVY)]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_files_are_short_and_say_what_they_are(path: Path):
    text = path.read_text(encoding="utf-8")

    assert text.count("\n") <= MAX_LINES
    assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"


def test_there_are_no_cycles_between_modules():
    known = {module_name(path) for path in FILES}
    graph = {
        module_name(path): {
            target
            for name in imports(path)
            for target in (name, name.rpartition(".")[0])
            if target in known and target != module_name(path)
        }
        for path in FILES
        if path.name != "__init__.py"
    }
    seen: dict[str, int] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path, name])
        if seen.get(name) or name not in graph:
            return
        for target in graph[name]:
            visit(target, (*path, name))
        seen[name] = 1

    for name in graph:
        visit(name, ())


def test_nothing_but_the_fixed_rooms_lies_at_the_top():
    allowed = {
        *PACKAGES,
        *("tests", "docs", "benchmarks", ".ci", "Makefile", "README.md", "CHANGELOG.md", "LICENSE"),
        *("conftest.py", "pyproject.toml", "constraints.txt", ".gitignore"),
    }
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()

    assert {name.split("/")[0] for name in tracked} <= allowed


@pytest.mark.parametrize(
    "command",
    [
        "reports.commands.doctor:main(['--help'])",
        "reports.commands.pressure:main(['list', 'scenarios/seed.yaml'])",
        "mudpuppy.cli:main(['explain', '--all'])",
    ],
)
def test_light_commands_start_without_torch(command: str):
    module, _, call = command.partition(":")
    code = (
        f"import sys, {module} as m\n"
        f"try:\n    code = m.{call}\nexcept SystemExit as e:\n    code = e.code\n"
        f"assert not code, code\n"
        f"sys.exit(' '.join(n for n in {HEAVY!r} if n in sys.modules) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert 0 == done.returncode, done.stderr


def test_the_file_map_of_the_readme_is_what_the_modules_say():
    spec = importlib.util.spec_from_file_location("filemap", ROOT / "docs/filemap.py")
    assert spec
    assert spec.loader
    filemap = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(filemap)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")

    files = (ROOT / "docs/files.md").read_text(encoding="utf-8")

    assert filemap.insert(readme) == readme, "run: python docs/filemap.py --write"
    assert filemap.page() == files, "run: python docs/filemap.py --write"


def test_no_table_and_no_pattern_of_the_engine_is_written_down_twice():
    homes: dict[str, list[str]] = {}
    for path in (ROOT / "mudpuppy").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
            is_pattern = isinstance(value, ast.Call) and "re.compile" in ast.unparse(value.func)
            if isinstance(value, ast.Dict) or is_pattern:
                homes.setdefault(ast.unparse(value), []).append(f"{path.name}:{node.lineno}")

    assert {} == {value: found for value, found in homes.items() if len(found) > 1}
