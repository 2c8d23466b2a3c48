"""Whether a run enlarges its images far beyond their own size, which costs time and shows nothing new."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from statistics import median

from muco.core.errors import DataError
from muco.core.image import EncodedImage
from muco.data.shards.reader import ShardReader

_SAMPLES = 16
"""Samples of each data set that are looked at."""
_TIMES = 4
"""Images enlarged to fewer times their pixels are not worth a note."""


def enlarging_note(min_pixels: int, readers: Iterable[ShardReader]) -> str | None:
    """Return what to say if the backbone enlarges most of the first images to many times their pixels."""
    sizes = [size for reader in readers for size in _sizes(reader)]
    if not sizes:
        return None
    width, height = (int(median(edges)) for edges in zip(*sizes, strict=True))
    if min_pixels < _TIMES * width * height:
        return None
    return (
        f"images of about {width} x {height} pixels are enlarged to {min_pixels:,} pixels, "
        f"{min_pixels / (width * height):.0f} times as many; a smaller backbone.min_pixels is faster"
    )


def _sizes(reader: ShardReader) -> Iterator[tuple[int, int]]:
    """Yield width and height of the images of the first samples; training counts those that are broken."""
    for index in range(min(len(reader), _SAMPLES)):
        with suppress(DataError):
            sample = reader[index]
            targets = (image for pair in sample.pairs for image in pair.target.images)
            yield from (each.size for each in (*sample.images, *targets) if isinstance(each, EncodedImage))
