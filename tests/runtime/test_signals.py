import signal
import subprocess
import sys
import threading

import pytest

from gistjax.runtime.signals import Stopped, StopSignals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_heard_and_the_handlers_come_back(number):
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match="run the same command again"), StopSignals() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
    assert signal.getsignal(number) is before


def test_without_a_signal_nothing_is_raised():
    with StopSignals() as stop:
        pass
    assert not stop.requested


def test_an_error_is_not_hidden_by_the_stop():
    with pytest.raises(ValueError), StopSignals():
        signal.raise_signal(signal.SIGTERM)
        raise ValueError


def test_a_second_signal_ends_the_process_at_once():
    script = """
import signal, time
from gistjax.runtime.signals import StopSignals
with StopSignals():
    signal.raise_signal(signal.SIGINT)
    print("first", flush=True)
    signal.raise_signal(signal.SIGTERM)
    print("second", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "first\n")


def test_in_another_thread_nothing_is_caught():
    before, after = signal.getsignal(signal.SIGTERM), []

    def run():
        with StopSignals():
            after.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert after == [before]
