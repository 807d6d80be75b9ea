"""The output whose model a folder in it holds in few bits: that of the same run alone."""

import json

import pytest

from harness.evidence.lineage.base import find_output

RUN = {"kind": "model", "method": "qat", "base": {"fingerprint": "1"}, "labels": {"tokens": 9}}


@pytest.mark.parametrize(
    ("own", "is_of_it"),
    [
        (None, True),
        ({**RUN, "kind": "int8"}, True),
        (RUN, False),
        ({**RUN, "kind": "int8", "base": {"fingerprint": "2"}}, False),
        ({**RUN, "kind": "int8", "labels": {"tokens": 8}}, False),
    ],
)
def test_a_folder_is_a_form_of_the_model_of_its_own_run_alone(tmp_path, own, is_of_it):
    form = tmp_path / "int8"
    form.mkdir()
    (tmp_path / "mudpuppy.json").write_text(json.dumps(RUN))
    if own:
        (form / "mudpuppy.json").write_text(json.dumps(own))

    assert find_output(form) is None  # there is no model beside the record
    (tmp_path / "config.json").write_text("{}")
    assert find_output(form) == (tmp_path if is_of_it else None)
