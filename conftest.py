"""Root of the test suite: loads the pressure plugin also where the project is not installed."""

from __future__ import annotations

import sys

# An installed project has loaded it through its entry point; registering it twice is an error.
pytest_plugins = ["pytester"] + (["harness.plugin"] if "harness.plugin" not in sys.modules else [])
