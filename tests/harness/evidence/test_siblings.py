"""What counts as far from its siblings, and what does not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.doctor import diagnose
from harness.evidence.values import scan as scanning
from harness.evidence.values.siblings import _compare_sizes
from harness.facts.checkpoint import Tensor
from harness.facts.weights import RowFacts
from harness.findings import Status
from tests.harness.checkpoints import edit_tensors, save_base


def group(*sizes):
    return [
        RowFacts(
            tensor=Tensor(
                name=f"layers.{number}.w", dtype="F32", shape=(9, 9), start=0, end=324, file="f"
            ),
            rows=9,
            width=9,
            rms=size,
            zeros=0,
        )
        for number, size in enumerate(sizes)
    ]


def odd(*sizes):
    return {one.tensor.name for one in _compare_sizes(group(*sizes))}


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ((1, 1, 1), set()),
        ((1, 1, 10), {"layers.2.w"}),
        ((1, 1.1, 0.9, 1, 0.1), {"layers.4.w"}),
        ((1, 1, 1, 1, 5), set()),
        ((1, 1, 1, 1, 1, 1, 20, 25), {"layers.6.w", "layers.7.w"}),
        ((1, 2, 4, 8, 16, 32), set()),
        ((1, 1, 1, 10, 10, 10), set()),
        ((1, 10, 1, 1, 10, 1, 1, 10, 10), set()),
        ((1e-3, 1e-3, 1e-3, float("inf")), {"layers.3.w"}),
    ],
)
def test_what_stands_out(sizes, wanted):
    assert odd(*sizes) == wanted


@given(
    sizes=st.lists(st.floats(0.41, 2.4), min_size=3, max_size=40),
    scale=st.floats(1e-6, 1e6),
)
@settings(max_examples=300, deadline=None)
def test_layers_within_a_factor_of_six_never_stand_out(sizes, scale):
    assert odd(*(size * scale for size in sizes)) == set()


@given(sizes=st.lists(st.floats(0.8, 1.25), min_size=3, max_size=40), at=st.integers(0, 39))
@settings(max_examples=300, deadline=None)
def test_one_layer_far_off_is_found_at_any_depth(sizes, at):
    place = at % len(sizes)
    sizes[place] *= 100
    assert odd(*sizes) == {f"layers.{place}.w"}


def test_quick_says_what_it_may_have_missed(tmp_path, monkeypatch):
    monkeypatch.setattr(scanning, "PLACES", 4)
    monkeypatch.setattr(scanning, "PLACE_BYTES", 64)
    monkeypatch.setattr(scanning, "LEAST_SAMPLED", 1)
    folder = save_base(tmp_path / "m")

    def ask(**options):
        found = diagnose(folder, select=["MPD301", "MPD305", "MPD310"], **options).probes
        return {one.code: one for one in found}

    assert "read" not in ask()["MPD301"].message
    assert "of one of them would have been seen with" in ask(quick=True)["MPD301"].message
    edit_tensors(folder, lambda t: {k: v * np.nan if "mlp" in k else v for k, v in t.items()})
    assert ask(quick=True)["MPD301"].status is Status.FAILED


def test_a_clean_sample_is_said_to_be_one(tmp_path, monkeypatch):
    monkeypatch.setattr(scanning, "PLACES", 4)
    monkeypatch.setattr(scanning, "PLACE_BYTES", 64)
    monkeypatch.setattr(scanning, "LEAST_SAMPLED", 1)
    folder = save_base(tmp_path / "m")
    whole, sampled = diagnose(folder), diagnose(folder, quick=True)
    assert "--quick" not in whole.why
    number = sampled.facts["subjects"][0]["sampled"]
    assert f"(a sample of {number} large tensors; --quick)" in sampled.why
    said = {one.code: one.message for one in sampled.probes if one.status is Status.PASSED}
    assert all("sample" in said[code] for code in ("MPD304", "MPD312"))
