"""SIGTERM ends a command as Ctrl-C does, with an exit code of its own."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from mudpuppy.interruption import HungUp, Terminated, describe, raising_when_terminated


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGTERM, Terminated), (signal.SIGHUP, HungUp)]
)
def test_a_signal_is_raised_inside_the_block_and_default_again_after_it(number, kind):
    def run() -> None:
        with raising_when_terminated():
            os.kill(os.getpid(), number)

    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(kind):
            run()
        assert signal.SIG_DFL is signal.getsignal(number)
    finally:
        signal.signal(number, before)


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with raising_when_terminated():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.SIG_IGN is signal.getsignal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_who_handles_it_already_goes_on_doing_so():
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    try:
        with raising_when_terminated():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)

    assert [signal.SIGTERM] == seen


def test_in_another_thread_nothing_is_touched():
    seen: list[object] = []

    def run() -> None:
        with raising_when_terminated():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()

    assert [signal.getsignal(signal.SIGTERM)] == seen


def test_the_words_and_codes_are_those_of_shells():
    assert ("interrupted", 130) == describe(KeyboardInterrupt())
    assert ("terminated", 143) == describe(Terminated())
    assert ("hung up", 129) == describe(HungUp())
