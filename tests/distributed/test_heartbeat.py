"""Processes that live and end together: what each says when another one ends, and that slow is not dead."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

MEMBER = """
import os, signal, sys, time
import torch.distributed as dist
from muco.core.errors import MucoError
from muco.distributed import heartbeat as presence
from muco.distributed.ranks import Ranks

presence._BEAT_SECONDS, presence._SILENCE_SECONDS, presence._PATIENCE_SECONDS = 0.2, 1.5, 3.0
presence._GRACE_SECONDS = 1.0
rank, number = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
dist.init_process_group("gloo")
ranks = Ranks(rank, number)

def fail(why):
    raise MucoError(why)

try:
    with presence.watched(ranks):
        ranks.wait()
        {part}
except MucoError as error:
    sys.exit(str(error))
print("done")
"""


def ends(number: int, part: str) -> list[tuple[int, str, float, int]]:
    """Run the part in so many processes; return their exit codes, what they said, seconds and ids."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    began = time.monotonic()
    group = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MEMBER.format(part=part)],
            env={**os.environ, **group, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(number)
    ]
    found = []
    try:
        for each in processes:
            said, _ = each.communicate(timeout=60)
            found.append((each.returncode, said, time.monotonic() - began, each.pid))
    finally:
        for each in processes:
            each.kill()
    return found


def test_all_name_the_one_that_was_killed():
    found = ends(3, "rank == 1 and os.kill(os.getpid(), signal.SIGKILL); ranks.wait()")
    assert found[1][0] == -signal.SIGKILL
    for code, said, _, _ in (found[0], found[2]):
        assert code == 1
        assert f"process 1 of 3 (host {socket.gethostname()}, pid {found[1][3]}) is gone" in said


def test_an_error_of_one_is_told_by_all():
    found = ends(3, "assert rank != 2, 'twice two' ; ranks.wait()")
    assert "Traceback" in found[2][1], "the error is shown where it was raised"
    for _, said, _, _ in found[:2]:
        assert f"process 2 of 3 (host {socket.gethostname()}, pid {found[2][3]}) failed: " in said
        assert "AssertionError: twice two" in said
        assert "Traceback" not in said


@pytest.mark.parametrize(
    ("last", "told"),
    [
        ("fail('no space is left')", "failed: no space is left"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "is gone: no sign of life for 3 seconds"),
    ],
)
def test_one_that_hangs_without_noticing_is_ended(last, told):
    first, _ = ends(2, f"time.sleep(50) if rank == 0 else {last}")
    assert first[0] == 2
    assert "process 1 of 2" in first[1]
    assert told in first[1]
    assert first[2] < 40


def test_one_that_takes_long_is_waited_for():
    found = ends(2, "rank == 1 and time.sleep(5); ranks.wait()")
    assert [(code, said) for code, said, _, _ in found] == [(0, "done\n")] * 2


def test_the_main_process_may_go_on_alone():
    found = ends(2, "rank == 0 and time.sleep(4)")
    assert [(code, said) for code, said, _, _ in found] == [(0, "done\n")] * 2
    assert found[0][2] > 4
