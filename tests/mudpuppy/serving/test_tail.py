"""Whoever is read never waits, and of what it prints the end is kept and no more."""

from __future__ import annotations

import subprocess
import sys
import time

from mudpuppy.serving.tail import Tail

MOST = 10_000


def tail_of(code):
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    return process, Tail(process.stderr, MOST)


def test_the_end_is_kept_and_no_more():
    process, tail = tail_of("import sys\nfor n in range(200_000): print(n, file=sys.stderr)")
    assert process.wait(60) == 0
    whole = "".join(f"{number}\n" for number in range(200_000))
    assert tail.text(10) == whole[-MOST:]
    assert len(tail._kept) <= 2 * MOST
    tail.close(10)
    assert process.stderr.closed


def test_a_short_word_is_kept_whole_and_need_not_be_utf_8():
    process, tail = tail_of(r"import sys; sys.stderr.buffer.write(b'no\xff\n')")
    process.wait(60)
    assert tail.text(10) == "no\ufffd\n"
    tail.close(10)


def test_a_stream_that_does_not_end_is_not_waited_for():
    process, tail = tail_of("import sys; print(1, file=sys.stderr, flush=True); sys.stdin.read(1)")
    started = time.monotonic()
    tail.close(0.1)
    assert time.monotonic() - started < 5
    assert not process.stderr.closed
    process.stdin.close()
    process.wait(60)
    tail.close(10)
    assert process.stderr.closed
