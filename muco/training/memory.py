"""Measure the peak memory of a function, and the memory that is free."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(device: torch.device, work: Callable[[], object]) -> int:
    """Return the peak bytes of the tensors that `work` allocates.

    On CUDA the allocator counts them, elsewhere the storages that operations return are counted.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _StorageCounter() as counter:
        work()
    return counter.peak


def available_bytes(device: torch.device) -> int:
    """Return the bytes that new tensors may take on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return psutil.virtual_memory().available


class _StorageCounter(TorchDispatchMode):
    """Counts the bytes of the storages that operations return, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = 0
        self._counted: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the operation. A storage that is first seen as an argument existed before and counts as 0."""
        kwargs = kwargs or {}
        self._add((args, kwargs), existed=True)
        results = func(*args, **kwargs)
        self._add(results, existed=False)
        return results

    def _add(self, values: object, *, existed: bool) -> None:
        storages = [each.untyped_storage() for each in tree_leaves(values) if isinstance(each, Tensor)]
        for storage in storages:
            if id(storage) not in self._counted:
                size = 0 if existed else storage.nbytes()
                self._counted.add(id(storage))
                self.current += size
                self.peak = max(self.peak, self.current)
                weakref.finalize(storage, self._remove, id(storage), size)

    def _remove(self, storage_id: int, size: int) -> None:
        self._counted.discard(storage_id)
        self.current -= size
