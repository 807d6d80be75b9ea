"""What Linux takes for a path: limits are in bytes, and characters may have four."""

import pytest

from mudpuppy.path_fault import MAX_NAME_BYTES, MAX_PATH_BYTES, find_path_fault


@pytest.mark.parametrize("sign", ["a", "\N{LATIN SMALL LETTER U WITH DIAERESIS}", "\N{FROG FACE}"])
def test_the_limit_of_a_path_is_in_bytes(sign):
    size = len(sign.encode())
    part = sign * (200 // size)
    whole = (
        "/".join([part] * (MAX_PATH_BYTES // 201 + 2))
        .encode()[:MAX_PATH_BYTES]
        .decode(errors="ignore")
    )
    assert find_path_fault(whole) == ""
    assert find_path_fault(f"{whole}/{part}") == f"is longer than {MAX_PATH_BYTES} bytes"


def test_the_limit_of_a_name_is_in_bytes():
    assert find_path_fault("a/" + "\N{FROG FACE}" * (MAX_NAME_BYTES // 4)) == ""
    assert "a name is longer" in find_path_fault("a/" + "\N{FROG FACE}" * (MAX_NAME_BYTES // 4 + 1))


@pytest.mark.parametrize(
    ("text", "fault"), [("", "is empty"), ("a\0b", "NUL"), ("\ud800", "is not UTF-8")]
)
def test_what_no_path_can_hold_is_told(text, fault):
    assert fault in find_path_fault(text)
