"""Queries and what they retrieved, as the gallery of the report shows them."""

from __future__ import annotations

from collections.abc import Sequence

from muco.core.sample import Content
from muco.core.suite import Task
from muco.core.video import Video
from muco.evaluation.results import GalleryQuery, GalleryTask, Retrieved
from muco.evaluation.search.ranking import Ranking
from muco.io.thumbnails import data_uri


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
    return content.text, tuple(map(data_uri, images))
