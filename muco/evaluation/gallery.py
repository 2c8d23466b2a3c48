"""Queries and what they retrieved, as the gallery of the report shows them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from muco.core.image import EncodedImage
from muco.core.sample import Content
from muco.core.suite import Task
from muco.core.video import Video
from muco.evaluation.results import GalleryQuery, GalleryTask, Retrieved
from muco.evaluation.search.ranking import Ranking

_MAX_IMAGE_BYTES, _THUMBNAIL_PIXELS = 20_000, 256
_FORMATS = ((b"\x89PNG", "png"), (b"\xff\xd8", "jpeg"), (b"RIFF", "webp"))


def gallery_task(task: Task, rankings: Sequence[Ranking]) -> GalleryTask:
    """Return the first queries of a task, one a ranking, with their best candidates."""
    queries: list[GalleryQuery] = []
    for row, ranking in enumerate(rankings):
        right = set(task.relevant[row])
        top = tuple(
            Retrieved(*_shown(task.pool[index]), score=score, right=index in right)
            for index, score in ranking.top
        )
        queries.append(GalleryQuery(*_shown(task.queries[row]), rank=ranking.rank, top=top))
    return GalleryTask(task.name, tuple(queries))


def _shown(content: Content) -> tuple[str, tuple[str, ...]]:
    """Return the text and the images, of a video its first frame."""
    images = (visual.frames[0] if isinstance(visual, Video) else visual for visual in content.images)
    return content.text, tuple(map(_data_uri, images))


def _data_uri(image: EncodedImage) -> str:
    """Return a small image as it is; a large one, or one that a page cannot show, as a thumbnail."""
    kind = next((kind for magic, kind in _FORMATS if image.data.startswith(magic)), "")
    if not kind or len(image.data) > _MAX_IMAGE_BYTES:
        return thumbnail_uri(image, _THUMBNAIL_PIXELS)
    return f"data:image/{kind};base64,{base64.b64encode(image.data).decode()}"


def thumbnail_uri(image: EncodedImage, max_pixels: int) -> str:
    """Return a JPEG of the image as a data URI, its longer side of at most `max_pixels`."""
    thumbnail, buffer = image.decode(), io.BytesIO()
    thumbnail.thumbnail((max_pixels, max_pixels))
    thumbnail.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
