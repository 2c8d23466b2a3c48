"""Ctrl-C and SIGTERM as a wish that is heard between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from muco.core.errors import MucoError


class Interrupted(MucoError):  # noqa: N818 - a wish fulfilled, no error
    """The run was asked to stop, and left a checkpoint."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


class GracefulShutdown:
    """While entered, notes the first SIGINT or SIGTERM; a second one acts at once."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> GracefulShutdown:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        self.signum = signum
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}
