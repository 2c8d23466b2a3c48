"""Which processes of a run are alive: a survivor ends too, and says who is gone or what failed there.

Every process beats once a second in the store that the launcher's group met in; no collective is involved,
so a process that reads, computes or writes for long is alive all the same.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed.distributed_c10d import Store, _get_default_store

from muco.core.errors import MucoError
from muco.distributed.ranks import Ranks
from muco.distributed.shutdown import Interrupted

_BEAT_SECONDS = 1.0
_SILENCE_SECONDS = 6.0
"""So long without a beat is death where an exchange has failed."""
_PATIENCE_SECONDS = 30.0
"""So long without a beat is death in itself: a collective on a GPU waits for the dead without an error."""
_GRACE_SECONDS = 5.0
"""The time to end by oneself, and for the others to hear why."""
_NOTE, _LEFT, _HEARD = "note", b"left", b"heard"

checkpoint_lock = threading.Lock()
"""Whoever holds it is not ended because another process is gone: a checkpoint is written whole."""


@contextmanager
def watched(ranks: Ranks) -> Iterator[None]:
    """Run the block as one of several processes that live and end together.

    Raises:
        MucoError: another process is gone or failed, and which.
    """
    if ranks.world_size == 1:
        yield
        return
    presence = _Presence(_get_default_store().clone(), ranks.rank, ranks.world_size)
    try:
        yield
    except Interrupted:
        presence.leave()
        raise
    except BaseException as error:
        # A failed exchange is a RuntimeError in every backend, and so are errors of this process's own.
        told = presence.verdict_on_others() if isinstance(error, RuntimeError) else None
        presence.tell(told or f"{presence.names[ranks.rank]} failed: {_first_line(error)}")
        presence.leave()
        if told is None:
            raise
        raise MucoError(presence.farewell(told)) from error
    presence.leave(in_order=True)


class _Presence:
    """The beat of a process, what it hears of the others, and the guard that ends it when they are gone."""

    def __init__(self, store: Store, rank: int, number: int) -> None:
        self._store, self._rank, self._number = store, rank, number
        store.set(f"name/{rank}", f"host {socket.gethostname()}, pid {os.getpid()}")
        store.set(f"beat/{rank}", "0")
        self.names = [
            f"process {each} of {number} ({store.get(f'name/{each}').decode()})" for each in range(number)
        ]
        self._note: str | None = None
        self._beats: dict[int, tuple[bytes, float]] = {}
        """Each process's last beat, and when it was first seen."""
        self._reached = time.monotonic()
        """When the store last answered."""
        self._suspicious = rank == 0
        self._left = threading.Event()
        self._talker = threading.Thread(target=self._talk, daemon=True)
        self._talker.start()
        # A thread of its own: where a node is cut off, the store's answer never comes.
        threading.Thread(target=self._guard, daemon=True).start()

    def verdict_on_others(self) -> str | None:
        """Return which other process ended and why, after waiting for the signs; None where all are alive."""
        self._suspicious = True
        deadline = time.monotonic() + _SILENCE_SECONDS + 3 * _BEAT_SECONDS
        while (told := self._verdict(_SILENCE_SECONDS)) is None and time.monotonic() < deadline:
            time.sleep(0.1)
        return told

    def tell(self, told: str) -> None:
        """Leave a note of what ended the run, the first one only, and wait until the others have it."""
        if self._note is None and self._can_talk():
            self._note = self._store.compare_set(_NOTE, "", told).decode()
        deadline = time.monotonic() + _GRACE_SECONDS
        self._suspicious = True
        while time.monotonic() < deadline and self._can_talk() and self._awaited({_LEFT, _HEARD}):
            time.sleep(0.1)

    def leave(self, *, in_order: bool = False) -> None:
        """Stop beating; the others take it for no death.

        Args:
            in_order: the run went well: the main process, which may hold the store, leaves last.
        """
        if in_order and self._rank == 0:
            while self._can_talk() and self._awaited({_LEFT}):
                time.sleep(0.1)
        self._left.set()
        self._talker.join(_GRACE_SECONDS)
        if self._can_talk():
            self._store.set(f"beat/{self._rank}", _LEFT.decode())

    def farewell(self, told: str) -> str:
        """Return what this process says when another has ended."""
        me = f"process {self._rank} of {self._number}"
        return f"{told}\nSo {me} ends too. The last checkpoint is whole: go on with --resume."

    def _talk(self) -> None:
        """Beat and listen, until this process leaves or the store is gone."""
        count = 0
        while not self._left.wait(_BEAT_SECONDS):
            count += 1
            beat = _HEARD.decode() if self._note else str(count)
            try:
                self._store.set(f"beat/{self._rank}", beat)
                # The main process listens to all, the others to it: one message a process and second.
                ranks = range(self._number) if self._suspicious else (0,)
                beats = self._store.multi_get([f"beat/{each}" for each in ranks])
                if self._store.check([_NOTE]):
                    self._note = self._store.get(_NOTE).decode()
            except RuntimeError:
                self._reached = -float("inf")
                return
            self._reached = now = time.monotonic()
            for each, found in zip(ranks, beats, strict=True):
                if self._beats.get(each, (None, 0.0))[0] != found:
                    self._beats[each] = (found, now)

    def _guard(self) -> None:
        """End the process when another one has ended and this one does not notice."""
        while (told := self._verdict(_PATIENCE_SECONDS)) is None:
            if self._left.wait(_BEAT_SECONDS / 2):
                return
        if self._left.wait(_GRACE_SECONDS + _SILENCE_SECONDS):
            return
        with checkpoint_lock:
            if self._can_talk():
                self._store.compare_set(_NOTE, "", told)
            print(self.farewell(told), file=sys.stderr, flush=True)
            os._exit(2)

    def _verdict(self, patience: float) -> str | None:
        """Return which process ended and why, as far as is known."""
        if self._note:
            return self._note
        now = time.monotonic()
        if now - self._reached > patience:
            if self._beats.get(0, (None, 0.0))[0] == _LEFT:
                return None
            return (
                f"{self.names[0]} is gone, or its launcher: the store that the processes met in is not there"
            )
        silent = [
            each
            for each, (beat, since) in self._beats.items()
            if each != self._rank and beat not in (_LEFT, _HEARD) and now - since > patience
        ]
        if not silent:
            return None
        gone = "; ".join(self.names[each] for each in sorted(silent))
        return f"{gone} is gone: no sign of life for {patience:.0f} seconds"

    def _awaited(self, signs: set[bytes]) -> bool:
        """Say whether another process is alive and has given none of these signs."""
        return any(
            beat not in signs and time.monotonic() - since < _SILENCE_SECONDS
            for each, (beat, since) in list(self._beats.items())
            if each != self._rank
        )

    def _can_talk(self) -> bool:
        return time.monotonic() - self._reached < _PATIENCE_SECONDS


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    line = text.splitlines()[0] if text else ""
    if isinstance(error, MucoError):
        return line
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
