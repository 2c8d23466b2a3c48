"""Checking images before they are written into shards, and reducing those above a limit."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace

from muco.core.image import EncodedImage
from muco.core.sample import Content, Sample
from muco.core.video import Video, Visual

_JPEG_QUALITY = 95


@dataclass(frozen=True)
class Limits:
    """Larger images are reduced to JPEG, their aspect ratio kept; None sets no limit."""

    max_pixels: int | None = None
    max_shorter_side_pixels: int | None = None
    enlarge: bool = False
    """Also enlarge images whose shorter side is below `max_shorter_side_pixels`, as the paper does."""

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height that an image is resized to."""
        scale = 1.0
        if self.max_shorter_side_pixels is not None:
            to_side = self.max_shorter_side_pixels / min(width, height)
            scale = to_side if self.enlarge else min(scale, to_side)
        if self.max_pixels is not None:
            scale = min(scale, (self.max_pixels / (width * height)) ** 0.5)
        # 1e-6: a side that is a whole number may come out just below it. A thin image keeps one pixel.
        size = max(1, int(width * scale + 1e-6)), max(1, int(height * scale + 1e-6))
        max_pixels = self.max_pixels if self.max_pixels is not None else size[0] * size[1]
        return min(size[0], max(1, max_pixels // size[1])), min(size[1], max(1, max_pixels // size[0]))

    def fit(self, image: EncodedImage) -> EncodedImage:
        """Return the image, reduced if it is too large; raise DataError if its header cannot be read."""
        from PIL.Image import Resampling

        size = self.size(*image.size)
        if size == image.size:
            return image
        buffer = io.BytesIO()
        image.decode().resize(size, Resampling.LANCZOS).save(buffer, "JPEG", quality=_JPEG_QUALITY)
        return EncodedImage(buffer.getvalue())


def resize_images(sample: Sample, limits: Limits) -> Sample:
    """Read the header of every image and frame; return the sample with those above the limits reduced.

    Raise DataError if an image is broken or has more pixels than muco reads, or if the frames of a video
    differ in size.
    """
    for visual in sample.visuals():
        _ = visual.size
    resized: dict[int, EncodedImage] = {}

    def image(old: EncodedImage) -> EncodedImage:
        if old.content_id not in resized:
            resized[old.content_id] = limits.fit(old)
        return resized[old.content_id]

    def visual_of(old: Visual) -> Visual:
        return replace(old, frames=tuple(map(image, old.frames))) if isinstance(old, Video) else image(old)

    def content(old: Content) -> Content:
        return replace(old, images=tuple(map(visual_of, old.images))) if old.images else old

    pairs = tuple(
        replace(
            pair,
            queries=tuple(map(content, pair.queries)),
            target=content(pair.target),
            negatives=tuple(map(content, pair.negatives)),
        )
        for pair in sample.pairs
    )
    return replace(sample, images=tuple(map(visual_of, sample.images)), pairs=pairs)
