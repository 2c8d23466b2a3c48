"""The limit on the aspect ratio of images: resized by the short side, a longer one would be too large."""

from __future__ import annotations

from muco.core.errors import DataError

_MAX_RATIO = 200
"""Longer side divided by shorter side."""


def refuse_elongated(width: int, height: int) -> None:
    """Raise DataError if one side of an image is over 200 times the other."""
    if max(width, height) > _MAX_RATIO * min(width, height):
        raise DataError(f"image of {width} x {height} pixels: one side is over {_MAX_RATIO} times the other")
