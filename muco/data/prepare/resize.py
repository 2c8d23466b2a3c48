"""Images on their way into shards: checked, and reduced where a limit is set."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace

from muco.core.image import EncodedImage
from muco.core.sample import Content, Sample
from muco.core.video import Video, Visual

_JPEG_QUALITY = 95


@dataclass(frozen=True)
class Limits:
    """Larger images are reduced, their sides in proportion, to JPEG; None sets no limit."""

    max_pixels: int | None = None
    max_shorter_side_pixels: int | None = None

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return the size that an image of some size is given."""
        scale = 1.0
        if self.max_pixels is not None:
            scale = min(scale, (self.max_pixels / (width * height)) ** 0.5)
        if self.max_shorter_side_pixels is not None:
            scale = min(scale, self.max_shorter_side_pixels / min(width, height))
        # A side that should be whole may lack the last bit, and a thin image keeps a pixel of its width.
        size = max(1, int(width * scale + 1e-6)), max(1, int(height * scale + 1e-6))
        most = self.max_pixels if self.max_pixels is not None else size[0] * size[1]
        return min(size[0], max(1, most // size[1])), min(size[1], max(1, most // size[0]))

    def fit(self, image: EncodedImage) -> EncodedImage:
        """Return the image itself, or reduced; raise DataError where its header cannot be read."""
        from PIL.Image import Resampling

        size = self.size(*image.size)
        if size == image.size:
            return image
        buffer = io.BytesIO()
        image.decode().resize(size, Resampling.LANCZOS).save(buffer, "JPEG", quality=_JPEG_QUALITY)
        return EncodedImage(buffer.getvalue())


def fitted(sample: Sample, limits: Limits) -> Sample:
    """Return the sample, every image's header read, and those beyond the limits reduced.

    Raises:
        DataError: an image that is none, or has more pixels than muco reads; a video whose frames differ in
            size.
    """
    for visual in sample.visuals():
        _ = visual.size
    return _with_images(sample, limits.fit)


def _with_images(sample: Sample, change: Callable[[EncodedImage], EncodedImage]) -> Sample:
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
