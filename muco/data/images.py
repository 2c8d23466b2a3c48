"""Images on their way into shards: checked, and reduced where a limit is set."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

from muco.core.image import EncodedImage
from muco.core.sample import Content, Sample
from muco.core.video import Video, Visual

_JPEG_QUALITY = 95


def fitted(sample: Sample, max_pixels: int | None) -> Sample:
    """Return the sample, every image's header read, and those with more pixels reduced.

    Raises:
        DataError: an image that is none, or has more pixels than muco reads; a video whose frames differ in
            size.
    """

    def fit(image: EncodedImage) -> EncodedImage:
        width, height = image.size
        too_large = max_pixels is not None and width * height > max_pixels
        return reduced(image, max_pixels) if too_large and max_pixels else image

    for visual in sample.visuals():
        _ = visual.size
    return with_images(sample, fit)


def reduced(image: EncodedImage, max_pixels: int) -> EncodedImage:
    """Return the image with at most so many pixels, its sides in proportion, as a JPEG."""
    from PIL.Image import Resampling

    width, height = image.size
    scale = (max_pixels / (width * height)) ** 0.5
    size = (max(1, int(width * scale)), max(1, int(height * scale)))
    buffer = io.BytesIO()
    image.decode().resize(size, Resampling.LANCZOS).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return EncodedImage(buffer.getvalue())


def with_images(sample: Sample, change: Callable[[EncodedImage], EncodedImage]) -> Sample:
    """Return the sample with every image and every frame changed, each distinct one once."""
    done: dict[int, EncodedImage] = {}

    def changed(image: EncodedImage) -> EncodedImage:
        if image.content_id not in done:
            done[image.content_id] = change(image)
        return done[image.content_id]

    def shown(visual: Visual) -> Visual:
        if isinstance(visual, Video):
            return replace(visual, frames=tuple(map(changed, visual.frames)))
        return changed(visual)

    def content(old: Content) -> Content:
        return replace(old, images=tuple(map(shown, old.images)))

    pairs = tuple(
        replace(
            pair,
            queries=tuple(map(content, pair.queries)),
            target=content(pair.target),
            negatives=tuple(map(content, pair.negatives)),
        )
        for pair in sample.pairs
    )
    return replace(sample, images=tuple(map(shown, sample.images)), pairs=pairs)
