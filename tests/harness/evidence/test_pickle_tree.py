"""Plain values come out of a pickle as they went in; nothing is called, and nothing hangs."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.evidence.files.pickle_tree import (
    Call,
    Named,
    UnreadablePickle,
    read_torch_tree,
    read_tree,
)

KEYS = st.one_of(st.text(max_size=8), st.integers(), st.booleans(), st.none())
VALUES = st.recursive(
    st.one_of(KEYS, st.floats(allow_nan=False), st.binary(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(KEYS, inner, max_size=4),
    ),
    max_leaves=20,
)


class Runs:
    """A pickle that would make a folder if it were loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@given(VALUES, st.integers(3, 5))
@settings(max_examples=150, deadline=None)
def test_plain_values_come_out_as_they_went_in(value, protocol):
    assert read_tree(io.BytesIO(pickle.dumps(value, protocol))) == value


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_nothing_is_called(tmp_path, protocol):
    raw = pickle.dumps([Runs(tmp_path / "made")], protocol)
    (call,) = read_tree(io.BytesIO(raw))
    assert isinstance(call, Call)
    assert isinstance(call.target, Named)
    assert call.target.name.endswith(".mkdir")
    assert not (tmp_path / "made").exists()


def test_an_ordered_dictionary_is_a_dictionary():
    assert read_tree(io.BytesIO(pickle.dumps(OrderedDict(a=1)))) == {"a": 1}


def test_the_state_of_an_optimizer_is_listed(tmp_path):
    layer = torch.nn.Linear(3, 5)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    tree = read_torch_tree(tmp_path / "optimizer.pt")
    assert tree["param_groups"][0]["params"] == [0, 1]
    assert tree["state"][0]["exp_avg"].arguments[2] == (5, 3)


DOUBLED = b"".join(b"h%ch%c\x86\x94" % (n, n) for n in range(40))
"""Forty tuples, each holding the one before it twice."""


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"}(I1\nu.", "without a value"),
        (b"}()I1\nu.", "no text and no number"),
        (b")\x94" + DOUBLED + b"h\x28h\x28\x93.", "name that is no text"),
    ],
)
def test_what_would_be_lost_or_never_end_is_refused(raw, reason):
    """The last would be a text of a thousand billion characters."""
    with pytest.raises(UnreadablePickle, match=reason):
        read_tree(io.BytesIO(raw))


@given(st.binary(max_size=200), st.integers(0, 10_000))
@settings(max_examples=300, deadline=None)
def test_damaged_pickles_are_refused_in_one_way(noise, place):
    raw = bytearray(pickle.dumps({"state": {n: [n, "x" * n, (n, 1.5)] for n in range(30)}}))
    start = place % len(raw)
    raw[start : start + len(noise)] = noise
    started = time.process_time()
    with contextlib.suppress(UnreadablePickle):
        read_tree(io.BytesIO(bytes(raw)))
    assert time.process_time() - started < 2


@pytest.mark.parametrize("raw", [b"(" * 900_000 + b".", b"]" * 900_000 + b".", b"(1" * 400_000])
def test_a_long_pickle_ends_soon(raw):
    started = time.process_time()
    with contextlib.suppress(UnreadablePickle):
        read_tree(io.BytesIO(raw))
    assert time.process_time() - started < 5


REGRESSION = Path(__file__).parents[2] / "fuzz/regressions/name-in-archive-is-no-text.zip"


def test_an_archive_with_a_name_that_is_no_text_is_refused(tmp_path):
    with zipfile.ZipFile(REGRESSION) as packed:
        path = Path(packed.extract("pytorch_model.bin", tmp_path))
    with pytest.raises(UnicodeDecodeError):
        zipfile.ZipFile(path)

    with pytest.raises(UnreadablePickle, match="cannot be read"):
        read_torch_tree(path)


@pytest.mark.parametrize("change", [0x01, 0x80, 0xFF])
def test_a_damaged_archive_is_read_or_refused_in_one_way(tmp_path, change):
    """zipfile raises ten kinds of errors, among them EOFError, KeyError and struct.error."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("m/data.pkl", pickle.dumps({"w": list(range(99))}))
        made.writestr("m/version", "3")
    raw, path, refused = whole.getvalue(), tmp_path / "damaged.bin", 0
    for place in range(len(raw)):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ change]) + raw[place + 1 :])
        try:
            read_torch_tree(path)
        except UnreadablePickle:
            refused += 1
    assert refused > 50
