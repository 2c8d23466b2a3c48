"""Turn a failed exchange between processes into an error that says what happened and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from muco.core.errors import MucoError
from muco.distributed.ranks import Ranks


@contextmanager
def explain_failed_exchange(ranks: Ranks) -> Iterator[None]:
    """Run the block as one of the processes of a run.

    Raises:
        MucoError: an exchange failed, because another process ended or did not answer in time.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_failed_exchange(error):
            raise
        if dist.get_backend() == "gloo":
            dist.destroy_process_group()  # threads of gloo that are left abort the interpreter's exit
        raise MucoError(
            f"process {ranks.rank} of {ranks.world_size}: another process ended or did not answer in time:\n"
            f"  {str(error).splitlines()[0]}\n"
            "Look at the output of the other processes and of the launcher for the cause. Fix it, then start "
            "all processes again with --resume: the last checkpoint is complete."
        ) from error


def _is_failed_exchange(error: RuntimeError) -> bool:
    """Gloo raises plain RuntimeErrors that name its source files; NCCL and the store raise DistErrors."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)
