from __future__ import annotations

import os
import signal

import pytest

from muco.distributed import shutdown
from muco.distributed.shutdown import GracefulShutdown


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_stored_and_its_repetition_by_a_launcher_is_the_same_request(signum):
    before = signal.getsignal(signum)
    with GracefulShutdown() as wish:
        assert wish.signum is None
        os.kill(os.getpid(), signum)
        os.kill(os.getpid(), signal.SIGTERM)
        assert wish.signum == signum
    assert signal.getsignal(signum) is before


def test_a_later_signal_ends_the_process(monkeypatch):
    monkeypatch.setattr(shutdown, "_SAME_REQUEST_SECONDS", -1.0)
    with GracefulShutdown():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with GracefulShutdown() as wish:
            os.kill(os.getpid(), signal.SIGHUP)
            assert wish.signum is None
    finally:
        signal.signal(signal.SIGHUP, before)
