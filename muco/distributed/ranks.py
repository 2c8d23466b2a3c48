"""Several processes: what each holds is gathered with gradient, and gradients are summed once a step."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from muco.core.errors import MucoError
from muco.core.turns import TurnEmbeddings, TurnIds

_BUCKET = 1 << 25
"""Gradients that are summed at once, in numbers."""
_LONGEST_WAIT = timedelta(hours=12)
"""For a process that prepares data or writes; the dead are found by their missing beat, not by this."""
_ID_COLUMNS = tuple(field.name for field in fields(TurnIds))


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, and which one this is; alone, no method communicates."""

    rank: int = 0
    world_size: int = 1

    @classmethod
    def join(cls) -> Ranks:
        """Return this process's rank, in the group that `accelerate launch` or `torchrun` set up.

        Raises:
            MucoError: a launcher's setting that is not supported.
        """
        if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
            raise MucoError(
                "ACCELERATE_USE_DEEPSPEED is set: muco does not run under DeepSpeed; to shard weights, "
                "launch with --use_fsdp --fsdp_version 2"
            )
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available(), timeout=_LONGEST_WAIT)
        return cls(state.process_index, state.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder."""
        return self.rank == 0

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.world_size > 1:
            dist.barrier()

    def sums(self, values: Mapping[str, Tensor | float], device: torch.device) -> dict[str, float]:
        """Return each value summed over the processes, which all give the same names."""
        if self.world_size == 1:
            return {name: float(value) for name, value in values.items()}
        names = sorted(values)
        column = torch.tensor([float(values[name]) for name in names], dtype=torch.float64, device=device)
        dist.all_reduce(column)
        return dict(zip(names, column.tolist(), strict=True))

    def greatest(self, value: int) -> int:
        """Return the greatest of the processes' values."""
        found = torch.tensor([value])
        if self.world_size > 1:
            found = found.to("cuda" if dist.get_backend() == "nccl" else "cpu")
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def gather(self, turns: TurnEmbeddings) -> TurnEmbeddings:
        """Return the turns of all processes, in the order of the ranks, with gradient for every one.

        Processes may hold different numbers of turns, none included; no padding row is returned.
        """
        if self.world_size == 1:
            return turns
        ids = torch.stack([getattr(turns, name).long() for name in _ID_COLUMNS], dim=1)
        sizes = self._sizes(len(turns), ids.device)
        columns = _join_rows(_exchange(ids, sizes), sizes).unbind(1)
        named: dict[str, Any] = dict(zip(_ID_COLUMNS, columns, strict=True))
        named["is_negative"] = named["is_negative"].bool()
        return TurnEmbeddings.join(_Gather.apply(turns.vectors, sizes, self.rank), TurnIds(**named))  # type: ignore[arg-type]

    def join_rows(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes, in the order of the ranks, without gradient, on the CPU."""
        if self.world_size == 1:
            return rows
        rows = rows.to("cuda" if dist.get_backend() == "nccl" else "cpu")
        sizes = self._sizes(len(rows), rows.device)
        return _join_rows(_exchange(rows, sizes), sizes).cpu()

    def sum_gradients(self, weights: Iterable[nn.Parameter]) -> None:
        """Replace every whole weight's gradient by its sum over the processes, once a step.

        A weight that no process has a gradient for keeps none, as it would in one process.
        """
        if self.world_size == 1:
            return
        trained = [weight for weight in weights if weight.requires_grad and not isinstance(weight, DTensor)]
        for bucket in _buckets(trained):
            parts = [torch.zeros_like(each) if each.grad is None else each.grad for each in bucket]
            used = torch.tensor([float(each.grad is not None) for each in bucket])
            flat = torch.cat([part.flatten() for part in parts] + [used.to(parts[0])])
            dist.all_reduce(flat)
            *summed, used = flat.split([each.numel() for each in bucket] + [len(bucket)])
            for weight, total, seen in zip(bucket, summed, used.tolist(), strict=True):
                weight.grad = total.view_as(weight).clone() if seen else None

    def share_weights(self, module: nn.Module) -> None:
        """Give every process the main one's weights and buffers."""
        if self.world_size > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor.data, src=0)

    def _sizes(self, size: int, device: torch.device) -> list[int]:
        mine = torch.tensor([size], device=device)
        found = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(found, mine)
        return [int(each) for each in found]


class _Gather(torch.autograd.Function):
    """All rows of all ranks; a row's gradient is the sum over the ranks that used it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int], rank: int) -> Tensor:
        ctx.sizes, ctx.rank = sizes, rank
        return _join_rows(_exchange(rows, sizes), sizes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad.split(ctx.sizes)[ctx.rank], None, None


def _exchange(rows: Tensor, sizes: list[int]) -> list[Tensor]:
    """Return every rank's rows, each padded to the most: collectives want equal shapes."""
    padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
    padded[: len(rows)] = rows
    found = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(found, padded)
    return found


def _join_rows(found: list[Tensor], sizes: list[int]) -> Tensor:
    return torch.cat([part[:size] for part, size in zip(found, sizes, strict=True)])


def _buckets(weights: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Split weights into groups of one dtype and device, up to a size."""
    buckets: list[list[nn.Parameter]] = []
    filled = 0
    for weight in weights:
        last = buckets[-1][0] if buckets else None
        alike = last is not None and (last.dtype, last.device) == (weight.dtype, weight.device)
        if not alike or filled + weight.numel() > _BUCKET:
            buckets.append([])
            filled = 0
        buckets[-1].append(weight)
        filled += weight.numel()
    return buckets
