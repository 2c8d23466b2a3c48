"""Run a function in the processes of a gloo group."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch.distributed as dist

from muco.distributed.ranks import Ranks
from tests.helpers.processes import fork_server


class Group:
    """Forked processes that run `function(ranks, *args)`.

    Args:
        function: of a module that the processes can import.
        folder: an empty folder, where the processes meet.
        timeout: of an exchange between them.
    """

    def __init__(
        self,
        folder: Path,
        world_size: int,
        function: Callable[..., Any],
        *args: Any,
        timeout: timedelta = timedelta(minutes=2),
    ) -> None:
        context = fork_server()
        self.processes, self._outcomes = [], []
        for rank in range(world_size):
            receiver, sender = context.Pipe(duplex=False)
            arguments = (sender, str(folder), rank, world_size, timeout, function, args)
            process = context.Process(target=_main, args=arguments, daemon=True)
            process.start()
            sender.close()
            self.processes.append(process)
            self._outcomes.append(receiver)

    def outcome(self, rank: int) -> Any:
        """Return what the function returned or raised in a process; None if the process was killed."""
        assert self._outcomes[rank].poll(120), f"process {rank} hangs"
        try:
            return pickle.loads(self._outcomes[rank].recv_bytes())
        except EOFError:
            return None

    def results(self) -> list[Any]:
        """Return what the function returned in every process."""
        outcomes = [self.outcome(rank) for rank in range(len(self.processes))]
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        return outcomes


def _main(
    sender: Connection,
    folder: str,
    rank: int,
    world_size: int,
    timeout: timedelta,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    rendezvous = {"init_method": f"file://{folder}/rendezvous", "rank": rank, "world_size": world_size}
    dist.init_process_group("gloo", timeout=timeout, **rendezvous)
    try:
        outcome = function(Ranks(rank, world_size, dist.new_group(timeout=timedelta(minutes=2))), *args)
    except Exception as error:
        error.add_note(traceback.format_exc())
        outcome = error.with_traceback(None)
        error.__cause__ = None
    sender.send_bytes(pickle.dumps(outcome))  # `send` would share tensors that end with the process
