"""Root of the test suite: loads the pressure plugin also where the project is not installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hypothesis import settings

# An installed project has loaded it through its entry point; registering it twice is an error.
pytest_plugins = ["pytester"] + (["harness.plugin"] if "harness.plugin" not in sys.modules else [])

# Processes that tests start must find the project and the tests, installed or not.
_SEARCH = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, _SEARCH))

# How long an example takes says something of the machine, and nothing of the code.
settings.register_profile("mudpuppy", deadline=None)
settings.load_profile("mudpuppy")
