"""The gallery: queries beside what they retrieved."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from muco.evaluation.results import Gallery, GalleryQuery

_IMAGE = re.compile(r"data:image/(?:png|jpeg|webp);base64,[A-Za-z0-9+/]+={0,2}")


@dataclass(frozen=True)
class Task:
    """The queries of one task."""

    anchor: str
    suite: str
    name: str
    queries: tuple[GalleryQuery, ...]

    @property
    def num_misses(self) -> int:
        """How many of the queries have a wrong first candidate."""
        return sum(query.is_miss for query in self.queries)


def gallery_of(galleries: Sequence[Gallery]) -> tuple[Task, ...]:
    """Return the tasks that have queries to show, each with an anchor of its own."""
    tasks = [(gallery.suite, task) for gallery in galleries for task in gallery.tasks if task.queries]
    return tuple(
        Task(f"task-{index}", suite, task.task, task.queries) for index, (suite, task) in enumerate(tasks)
    )


def is_safe_image(image: str) -> bool:
    """Return whether a browser can only show it: a data URI of a PNG, JPEG or WebP."""
    return _IMAGE.fullmatch(image) is not None
