"""Contents that are made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import overload

from muco.core.sample import Content


class LazyContents(Sequence[Content]):
    """A sequence of contents of which none is kept: no more images are in memory than are in use."""

    def __init__(self, make: Callable[[int], Content], places: range) -> None:
        """Take what makes the content of a place, and the places; a slice makes nothing."""
        self._make = make
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Content: ...
    @overload
    def __getitem__(self, index: slice) -> LazyContents: ...
    def __getitem__(self, index: int | slice) -> Content | LazyContents:
        if isinstance(index, slice):
            return LazyContents(self._make, self._places[index])
        return self._make(self._places[index])
