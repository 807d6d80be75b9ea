"""Every damage that a repair claims to mend is mended, or refused with a reason."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from harness.doctor import diagnose
from harness.evidence.source import Options
from harness.repairs.make import plan_repairs, write_copy
from harness.repairs.registry import load_repairs
from harness.selftest.registry import load_damages
from harness.selftest.ward import Recovery

MENDED = {name for one in load_repairs() for name in one.mends}
DAMAGES = sorted(name for name, one in load_damages().items() if one.probe in MENDED)
LOST = {"weights-pickled": {"checkpoint-not-resumable"}}
"""What a copy lacks by the nature of its repair: a state that would run code is not copied."""


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    return Recovery(tmp_path_factory.mktemp("ward"))


def digest(folder: Path) -> str:
    made = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            made.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return made.hexdigest()


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damage_is_mended_in_the_copy_or_refused_with_a_reason(ward, tmp_path, name):
    one = load_damages()[name]
    with ward.copy(one.patient) as patient:
        broken = one.apply(patient) or patient
        assert broken.path.is_dir(), "a single file is not repaired: let it break a folder"
        options = {k: v for k, v in broken.options.items() if k in ("base", "adapter")}
        before = digest(broken.path)
        found = diagnose(broken.path, **options)
        plan = plan_repairs(broken.path, found, Options(**options))
        reasons = {item.name: item.why for item in plan.unmended}
        if plan.changes:
            write_copy(plan, tmp_path / "copy")
            left = {item.name for item in diagnose(tmp_path / "copy", **options).findings}
            spoke = {item.name for item in found.findings}
            more = left - spoke - LOST.get(one.probe, set())
            assert not more, f"the repair makes {more}"
            assert one.probe in reasons or one.probe not in left
        else:
            assert reasons[one.probe]
        assert digest(broken.path) == before


def test_most_of_what_repairs_claim_is_really_mended(ward, tmp_path):
    """A repair that refuses everything would pass the test above."""
    refused = []
    for name in DAMAGES:
        one = load_damages()[name]
        with ward.copy(one.patient) as patient:
            broken = one.apply(patient) or patient
            options = {k: v for k, v in broken.options.items() if k in ("base", "adapter")}
            plan = plan_repairs(broken.path, diagnose(broken.path, **options), Options(**options))
            refused += [name for item in plan.unmended if item.name == one.probe]

    assert len(refused) < len(DAMAGES) / 2, refused
