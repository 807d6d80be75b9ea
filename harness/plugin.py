"""pytest plugin: the pressure matrix as pytest items. Imports only pytest when loaded."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark of pressure cells."""
    config.addinivalue_line("markers", "pressure: a cell of the pressure matrix (minutes)")
