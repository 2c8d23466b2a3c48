"""What the other process of a run says when one is killed, fails, hangs or is slow."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta

import pytest

from muco.core import MucoError
from muco.distributed.ranks import Ranks, explain_failed_exchange
from tests.helpers.ranks import Group

SHORT = timedelta(seconds=1)


def exchange_twice(ranks: Ranks, between: str) -> int:
    """Return the greatest rank; process 1 does something between two exchanges."""
    with explain_failed_exchange(ranks):
        ranks.greatest(0)
        if ranks.rank == 1 and between == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if ranks.rank == 1 and between == "fail":
            raise ValueError("no such file")
        if ranks.rank == 1 and between in ("hang", "write"):
            time.sleep(100 if between == "hang" else 2)
        if between == "write":
            ranks.wait()
        return ranks.greatest(ranks.rank)


@pytest.mark.process
@pytest.mark.parametrize(
    ("between", "reason"), [("kill", "peer"), ("fail", "peer"), ("hang", "Timed out waiting")]
)
def test_the_other_process_ends_with_an_error(tmp_path, between, reason):
    group = Group(tmp_path, 2, exchange_twice, between, timeout=SHORT)
    error = group.outcome(0)
    assert isinstance(error, MucoError)
    assert "process 0 of 2: another process ended or did not answer in time" in str(error)
    assert reason in str(error)
    assert "--resume" in str(error)


@pytest.mark.process
def test_an_error_of_its_own_is_raised_as_it_is(tmp_path):
    error = Group(tmp_path, 2, exchange_twice, "fail").outcome(1)
    assert isinstance(error, ValueError)


@pytest.mark.process
def test_a_process_that_writes_is_waited_for_longer_than_an_exchange(tmp_path):
    assert Group(tmp_path, 2, exchange_twice, "write", timeout=SHORT).results() == [1, 1]
