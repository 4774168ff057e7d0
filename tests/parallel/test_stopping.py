"""Requests to stop: a signal soon after the first is the same request; a later one kills."""

import os
import signal

import pytest

from resnet_jax.parallel import stopping
from resnet_jax.parallel.stopping import StopRequest


class KilledError(Exception):
    pass


def kill(number, frame):
    raise KilledError


@pytest.fixture
def killing():
    """Installs handlers that raise, since the default ones would end the tests."""
    before = {n: signal.signal(n, kill) for n in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_noted_inside_and_has_its_usual_effect_after(killing, number):
    with StopRequest() as stop:
        assert not stop.received
        os.kill(os.getpid(), number)
        assert stop.received == number.name
    with pytest.raises(KilledError):
        os.kill(os.getpid(), number)


def test_a_hang_up_that_is_ignored_stays_ignored(killing):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup starts programs
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.received
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_second_hang_up_does_not_kill(killing, monkeypatch):
    monkeypatch.setattr(stopping, "_SAME_REQUEST_SECONDS", 0.0)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.received == "SIGHUP"


def test_with_several_processes_sighup_becomes_the_sigterm_that_jax_handles(killing, monkeypatch):
    monkeypatch.setattr(stopping, "is_distributed", lambda: True)
    signal.signal(signal.SIGHUP, lambda number, frame: None)
    with StopRequest(), pytest.raises(KilledError):  # by the stand-in for JAX's SIGTERM handler
        os.kill(os.getpid(), signal.SIGHUP)


def test_a_signal_soon_after_the_first_is_the_same_request(killing):
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == "SIGTERM"


def test_a_later_signal_kills(killing, monkeypatch):
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.setattr(stopping, "_SAME_REQUEST_SECONDS", 0.0)
        with pytest.raises(KilledError):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == "SIGTERM"
