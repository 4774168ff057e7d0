"""Being asked to stop: once is a request, at once again is the same one, later is an order."""

import os
import signal

import pytest

from resnet_jax import signals
from resnet_jax.signals import StopRequest


class KilledError(Exception):
    pass


@pytest.fixture
def killing():
    """Gives SIGTERM a handler that raises, as its default would end the tests."""

    def kill(number, frame):
        raise KilledError

    before = signal.signal(signal.SIGTERM, kill)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_signal_is_noted_and_afterwards_means_what_it_did(killing):
    with StopRequest() as stop:
        assert not stop.received
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == "SIGTERM"
    with pytest.raises(KilledError):
        os.kill(os.getpid(), signal.SIGTERM)


def test_the_same_request_on_another_way_is_no_order(killing):
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == "SIGTERM"


def test_a_later_signal_kills(killing, monkeypatch):
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.setattr(signals, "_SAME_REQUEST_SECONDS", 0.0)
        with pytest.raises(KilledError):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == "SIGTERM"
