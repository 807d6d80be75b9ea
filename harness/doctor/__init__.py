"""The doctor of checkpoints: from a path to a diagnosis, and everything that only it needs."""

from __future__ import annotations

from harness.doctor.judging import Judging
from harness.doctor.visit import assert_healthy, diagnose, diagnose_model
from harness.findings import Diagnosis

__all__ = ["Diagnosis", "Judging", "assert_healthy", "diagnose", "diagnose_model"]
