"""Images too elongated to resize: by their short side they would become too long to hold."""

from __future__ import annotations

from muco.core.errors import DataError

_MOST = 200
"""Longer side by shorter side."""


def refuse_elongated(width: int, height: int) -> None:
    """Raise DataError where one side of an image is many times the other."""
    if max(width, height) > _MOST * min(width, height):
        raise DataError(f"image of {width} x {height} pixels: one side is over {_MOST} times the other")
