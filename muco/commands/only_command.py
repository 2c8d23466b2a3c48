"""Let one command at a time write into a run folder."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from muco.distributed.ranks import Ranks
from muco.io.atomic import remove_leftovers
from muco.io.lock import locked


@contextmanager
def only_command(path: Path, ranks: Ranks) -> Generator[None]:
    """Hold the lock beside a run folder, in the main process; raise MucoError if another command has it."""
    if not ranks.is_main:
        yield
        return
    folder = path.absolute()
    is_new = not folder.parent.exists()
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent)
    try:
        with locked(folder.parent / f".{folder.name}.lock", wait=False):
            for parent, _, _ in os.walk(folder):
                remove_leftovers(Path(parent))
            yield
    finally:
        if is_new:
            with suppress(OSError):  # it stays if the command wrote something there
                folder.parent.rmdir()
