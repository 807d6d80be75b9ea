"""The page on the building blocks: its example runs, and its names exist."""

import importlib
import re
from pathlib import Path

from mudpuppy.config import TrainingConfig
from mudpuppy.config_check import flag_of

PAGE = Path(__file__).parents[3] / "docs/ops.md"
MODULES = ("ops.levels", "ops.gemm", "ops.norms")


def test_the_example_runs():
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    names: dict[str, object] = {}
    exec(compile(example, str(PAGE), "exec"), names)
    assert 0 < names["error"] < 0.03


def test_every_call_of_the_table_exists():
    text = PAGE.read_text("utf-8")
    known = {
        name
        for module in MODULES
        for name, part in vars(importlib.import_module(f"mudpuppy.{module}")).items()
        if callable(part) and part.__module__.startswith("mudpuppy.ops")
    }
    told = set(re.findall(r"`(\w+)\(", text))
    assert told <= known
    public = {n for n in known if not n.startswith("_") and n[0].islower()}
    assert public <= told | {"Levels"}


def test_every_flag_of_the_page_is_a_setting_and_every_setting_is_told():
    text = PAGE.read_text("utf-8")
    flags = {flag_of(name) for name in TrainingConfig.field_names()}
    assert set(re.findall(r"--[a-z][a-z0-9-]+", text)) <= flags
    own = {flag for flag in flags if flag.startswith(("--qat-", "--fp8-"))}
    assert own <= set(re.findall(r"--[a-z][a-z0-9-]+", text))
