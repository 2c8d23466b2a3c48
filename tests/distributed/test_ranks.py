from __future__ import annotations

import atexit
import os

import pytest
import torch.distributed as dist

from muco.distributed.ranks import Ranks
from tests.helpers.ranks import Group


def exit_after_joining(ranks: Ranks) -> bool:
    """Return whether exchanges are possible after what Python does at its exit."""
    rank, size = str(ranks.rank), str(ranks.world_size)
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    Ranks.join().wait()
    atexit._run_exitfuncs()
    return dist.is_initialized()


@pytest.mark.process
def test_exchanges_end_before_the_interpreter_does(tmp_path):
    # Threads of gloo that were left aborted one of 24 processes at its exit: "terminate called".
    assert Group(tmp_path, 2, exit_after_joining).results() == [False, False]
