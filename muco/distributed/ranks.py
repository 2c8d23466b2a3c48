"""The processes of a run: gather embeddings with gradient, sum gradients once a step."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from muco.core.errors import MucoError
from muco.core.turns import TurnEmbeddings, TurnIds
from muco.distributed.gradients import GradientSum

_EXCHANGE_TIMEOUT = timedelta(minutes=10)
_WAIT_TIMEOUT = timedelta(hours=12)
"""Of `wait`: another process may be preparing data or writing a checkpoint."""
_ID_COLUMNS = tuple(field.name for field in fields(TurnIds))


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, and which one this is. With one process, no method communicates."""

    rank: int = 0
    world_size: int = 1
    wait_group: dist.ProcessGroup | None = None
    """The group of `wait`, whose timeout is long; None is the default group."""

    @classmethod
    def join(cls) -> Ranks:
        """Join the processes that `accelerate launch` or `torchrun` started.

        An exchange fails when another process ended, or did not answer for 10 minutes. DeepSpeed is refused.
        """
        if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
            raise MucoError(
                "ACCELERATE_USE_DEEPSPEED is set: muco does not run under DeepSpeed; to shard weights, "
                "launch with --use_fsdp --fsdp_version 2"
            )
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available(), timeout=_EXCHANGE_TIMEOUT)
        atexit.register(_end_exchanges)
        # Gloo on GPUs too: it notices at once that a process has ended.
        wait_group = dist.new_group(backend="gloo", timeout=_WAIT_TIMEOUT)
        assert isinstance(wait_group, dist.ProcessGroup)
        return cls(state.process_index, state.num_processes, wait_group)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder."""
        return self.rank == 0

    def wait(self) -> None:
        """Return when every process has called this, up to 12 hours later."""
        if self.world_size > 1:
            dist.barrier(self.wait_group)

    def sums(self, values: Mapping[str, Tensor | float], device: torch.device) -> dict[str, float]:
        """Return each value summed over the processes; all must pass the same names."""
        if self.world_size == 1:
            return {name: float(value) for name, value in values.items()}
        names = sorted(values)
        column = torch.tensor([float(values[name]) for name in names], dtype=torch.float64, device=device)
        dist.all_reduce(column)
        return dict(zip(names, column.tolist(), strict=True))

    def greatest(self, value: int) -> int:
        """Return the greatest of the processes' values."""
        if self.world_size == 1:
            return value
        greatest = torch.tensor([value], device=_backend_device())
        dist.all_reduce(greatest, dist.ReduceOp.MAX)
        return int(greatest)

    def least(self, value: int) -> int:
        """Return the least of the processes' values."""
        return -self.greatest(-value)

    def gather(self, turns: TurnEmbeddings) -> TurnEmbeddings:
        """Return the turns of all processes, by rank, with gradient for every turn.

        Processes may hold different numbers of turns, also none. No padding row is returned.
        """
        if self.world_size == 1:
            return turns
        ids = torch.stack([getattr(turns, name).long() for name in _ID_COLUMNS], dim=1)
        sizes = self._sizes(len(turns), ids.device)
        columns = dict(zip(_ID_COLUMNS, _all_rows(ids, sizes).unbind(1), strict=True))
        columns["is_negative"] = columns["is_negative"].bool()
        return TurnEmbeddings.join(_Gather.apply(turns.vectors, sizes, self.rank), TurnIds(**columns))  # type: ignore[arg-type]

    def join_rows(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes, by rank, without gradient, on the CPU."""
        if self.world_size == 1:
            return rows
        self.wait()  # their rows may take longer than the timeout of an exchange
        rows = rows.to(_backend_device())
        return _all_rows(rows, self._sizes(len(rows), rows.device)).cpu()

    def gradient_sum(self, weights: Iterable[nn.Parameter]) -> GradientSum:
        """Return the sum of the gradients of the trained weights that are not sharded, not yet started."""
        if self.world_size == 1:
            return GradientSum(())
        from torch.distributed.tensor import DTensor  # slow to import, and only a step needs it

        return GradientSum(each for each in weights if each.requires_grad and not isinstance(each, DTensor))

    def share_weights(self, module: nn.Module) -> None:
        """Copy the main process's weights and buffers to every process."""
        if self.world_size > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor.data, src=0)

    def _sizes(self, size: int, device: torch.device) -> list[int]:
        own = torch.tensor([size], device=device)
        sizes = [torch.empty_like(own) for _ in range(self.world_size)]
        dist.all_gather(sizes, own)
        return [int(each) for each in sizes]


@contextmanager
def explain_failed_exchange(ranks: Ranks) -> Iterator[None]:
    """Raise MucoError if an exchange fails, because another process ended or did not answer in time."""
    try:
        yield
    except RuntimeError as error:
        # Gloo raises plain RuntimeErrors that name its source files; NCCL and the store raise DistErrors.
        if not (isinstance(error, dist.DistError) or "gloo/transport" in str(error)):
            raise
        if dist.get_backend() == "gloo":
            _end_exchanges()
        raise MucoError(
            f"process {ranks.rank} of {ranks.world_size}: another process ended or did not answer in time:\n"
            f"  {str(error).splitlines()[0]}\n"
            "Look at the output of the other processes and of the launcher for the cause. Fix it, then start "
            "all processes again with --resume: the last checkpoint is complete."
        ) from error


class _Gather(torch.autograd.Function):
    """Return all ranks' rows; a row's gradient is the sum of the gradients that the ranks have for it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int], rank: int) -> Tensor:
        ctx.sizes, ctx.rank = sizes, rank
        return _all_rows(rows, sizes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad.split(ctx.sizes)[ctx.rank], None, None


def _all_rows(rows: Tensor, sizes: list[int]) -> Tensor:
    """Return every rank's rows, exchanged padded to the largest size: collectives need equal shapes."""
    padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded)
    return torch.cat([each[:size] for each, size in zip(gathered, sizes, strict=True)])


def _end_exchanges() -> None:
    """End the threads of the exchanges: those that are left may abort the interpreter's exit."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _backend_device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
