"""Stop after the current step on SIGINT or SIGTERM."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from muco.core.errors import MucoError


class Interrupted(MucoError):  # noqa: N818 - the user asked for it, so it is no error
    """The run was asked to stop and has written a checkpoint.

    The exit code is 128 and the signal's number.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


class GracefulShutdown:
    """Within the block, store the first SIGINT or SIGTERM in `signum`; a second one ends the process."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> GracefulShutdown:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous[signum] = signal.signal(signum, self._store)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _store(self, signum: int, _frame: FrameType | None) -> None:
        self.signum = signum
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}
