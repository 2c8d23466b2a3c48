from __future__ import annotations

import platform
import signal
import subprocess
import sys
import threading

import pytest

from muco.core.errors import MucoError
from muco.io.lock import locked

HOLD = """
import sys, time
from pathlib import Path
from muco.io.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_thread_at_a_time_though_each_removes_the_file(tmp_path):
    """A thread that waited holds the file that the next one finds, not the one that was removed."""
    path = tmp_path / "a.lock"
    inside, seen, start = [], [], threading.Barrier(8)

    def enter() -> None:
        start.wait()
        for _ in range(20):
            with locked(path):
                inside.append(None)
                seen.append((len(inside), path.is_file()))
                inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(seen) == {(1, True)}
    assert len(seen) == 160
    assert not path.exists()


@pytest.mark.process
def test_the_lock_of_a_killed_process_is_free(tmp_path):
    path = tmp_path / "a.lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with (
            pytest.raises(MucoError, match=f"host {platform.node()}, process {process.pid}$"),
            locked(path, wait=False),
        ):
            pass
        waited = threading.Event()

        def enter() -> None:
            with locked(path):
                waited.set()

        thread = threading.Thread(target=enter)
        thread.start()
        assert not waited.wait(0.1)
        process.send_signal(signal.SIGKILL)
        thread.join(timeout=30)
        assert waited.is_set()
    assert not path.exists()
