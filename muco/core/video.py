"""A video as its frames: encoded images at equal intervals of time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from muco.core.errors import DataError
from muco.core.ids import stable_id
from muco.core.image import EncodedImage


@dataclass(frozen=True)
class Video:
    """Frames of one size, in order; usable wherever an image is.

    Raises ValueError if there is no frame, or `seconds_per_frame` is no positive number.
    """

    frames: tuple[EncodedImage, ...]
    seconds_per_frame: float = 1.0
    """Seconds from one frame to the next."""

    def __post_init__(self) -> None:
        if not self.frames:
            raise ValueError("a video needs at least one frame")
        if not (self.seconds_per_frame > 0 and math.isfinite(self.seconds_per_frame)):
            raise ValueError(f"a video with {self.seconds_per_frame} seconds from frame to frame")

    @cached_property
    def content_id(self) -> int:
        """A stable hash of the frames and of `seconds_per_frame`."""
        seconds = repr(float(self.seconds_per_frame))
        return stable_id("video", seconds, *(str(frame.content_id) for frame in self.frames))

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height of every frame in pixels; DataError if they differ or one is no image."""
        sizes = dict.fromkeys(frame.size for frame in self.frames)
        if len(sizes) > 1:
            two = " and ".join(f"{width} x {height}" for width, height in list(sizes)[:2])
            raise DataError(f"the frames of a video differ in size: {two} pixels")
        return next(iter(sizes))

    def frame_indices(self, max_frames: int) -> list[int]:
        """Return the indices of at most `max_frames` evenly spaced frames, ascending.

        The first and the last frame are among them; if `max_frames` is 1, only the first.
        """
        number = min(len(self.frames), max_frames)
        step = (len(self.frames) - 1) / max(1, number - 1)
        return [round(index * step) for index in range(number)]


Visual = EncodedImage | Video
"""An image or a video."""


def stills(visuals: Iterable[Visual]) -> Iterator[EncodedImage]:
    """Yield every image, and every frame of every video, in order."""
    for visual in visuals:
        if isinstance(visual, Video):
            yield from visual.frames
        else:
            yield visual
