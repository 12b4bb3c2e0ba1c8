"""Stop requests are noted, reported as shells report them, and a second Ctrl-C ends at once."""

import os
import signal

import pytest

from jaxpretrain.training.signals import Signals


@pytest.mark.parametrize(("number", "name", "code"), [(signal.SIGTERM, "SIGTERM", 143), (signal.SIGINT, "SIGINT", 130)])
def test_a_signal_is_noted(number: signal.Signals, name: str, code: int):
    with Signals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), number)
        assert (signals.received, signals.exit_code) == (name, code)


def test_the_second_ctrl_c_ends_at_once():
    with Signals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_second_sigterm_waits_for_the_save():
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == "SIGTERM"


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Signals():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
