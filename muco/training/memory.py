"""How much memory a piece of work takes at its peak, on any device."""

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
    """Return the most bytes of tensors that `work` holds at once, beside those that were there before.

    On CUDA as the allocator counts them, elsewhere by the tensors that operations return.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _Watch() as watch:
        work()
    return watch.peak


def available_bytes(device: torch.device) -> int:
    """Return how much memory new tensors may take on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return psutil.virtual_memory().available


class _Watch(TorchDispatchMode):
    """Counts the storages that operations make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the operation; what it takes and has not made itself was there before."""
        kwargs = kwargs or {}
        for storage in _storages((args, kwargs)):
            self._note(storage, 0)
        made = func(*args, **kwargs)
        for storage in _storages(made):
            self._note(storage, storage.nbytes())
        return made

    def _note(self, storage: torch.UntypedStorage, size: int) -> None:
        if id(storage) in self._known:
            return
        self._known.add(id(storage))
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._forget, id(storage), size)

    def _forget(self, known: int, size: int) -> None:
        self._known.discard(known)
        self.held -= size


def _storages(values: object) -> list[torch.UntypedStorage]:
    return [each.untyped_storage() for each in tree_leaves(values) if isinstance(each, Tensor)]
