"""Contents that are read when they are used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import overload

from muco.core.sample import Content


class LazyContents(Sequence[Content]):
    """A sequence that reads a content at each access and keeps none, for `Task.queries` and `Task.pool`."""

    def __init__(self, read: Callable[[int], Content], indices: range) -> None:
        """Take the function that reads a content by its index, and the indices; a slice reads nothing."""
        self._read = read
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Content: ...
    @overload
    def __getitem__(self, index: slice) -> LazyContents: ...
    def __getitem__(self, index: int | slice) -> Content | LazyContents:
        if isinstance(index, slice):
            return LazyContents(self._read, self._indices[index])
        return self._read(self._indices[index])
