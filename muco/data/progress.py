"""How long loops over data report their progress."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class ShowProgress(Protocol):
    """Called as `progress(items, number, description)`; yields the same items while it shows them pass."""

    def __call__(self, items: Iterable[Item], number: int, description: str, /) -> Iterable[Item]:
        """Yield the items; `number` of them are expected."""
        ...
