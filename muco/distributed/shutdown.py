"""Stop after the current step on SIGINT, SIGTERM or SIGHUP."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

from muco.core.errors import MucoError

_STOP_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]  # Windows has no SIGHUP
_SAME_REQUEST_SECONDS = 2.0
"""Signals so close together are one request: a process group gets it, and torchrun passes it on."""


class Interrupted(MucoError):  # noqa: N818 - a stop by the user is no error
    """The run was stopped and has written a checkpoint; the exit code is 128 and the signal's number."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


class GracefulShutdown:
    """Within the block, store the first stop signal in `signum`; one that comes later ends the process.

    Signals that are ignored stay ignored: `nohup` ignores SIGHUP.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._received = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> GracefulShutdown:
        if threading.current_thread() is threading.main_thread():
            for signum in _STOP_SIGNALS:
                if signal.getsignal(signum) is not signal.SIG_IGN:
                    self._previous[signum] = signal.signal(signum, self._store)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _store(self, signum: int, _frame: FrameType | None) -> None:
        if self.signum is None:
            self.signum, self._received = signum, time.monotonic()
        elif time.monotonic() - self._received > _SAME_REQUEST_SECONDS:
            self._restore()
            signal.raise_signal(signum)

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}


def ignore_stop_signals() -> None:
    """Leave stop signals to the main process, which ends the data workers after its checkpoint."""
    for signum in _STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
