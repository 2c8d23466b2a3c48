"""The gallery: queries beside what they retrieved, their images let in only as inert data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from muco.report.formatting import clipped
from muco.report.records import Found, Shown, ShownQuery, ShownTask, SuiteGallery

_IMAGE = re.compile(r"data:image/(?:png|jpeg|webp);base64,[A-Za-z0-9+/]+={0,2}")


@dataclass(frozen=True)
class Tile:
    """Text and images that are safe to show; None stands for an image that was refused."""

    text: str
    images: tuple[str | None, ...]


@dataclass(frozen=True)
class Result(Tile):
    """A retrieved candidate."""

    score: str
    right: bool


@dataclass(frozen=True)
class Query(Tile):
    """A query."""

    rank: int
    results: tuple[Result, ...]

    @property
    def is_miss(self) -> bool:
        """Whether the first candidate is wrong."""
        return self.rank > 1

    @property
    def has_pictures(self) -> bool:
        """Whether the results go side by side, as pictures do, rather than one a line."""
        return any(result.images for result in self.results)


@dataclass(frozen=True)
class Task:
    """A task's queries."""

    anchor: str
    suite: str
    name: str
    queries: tuple[Query, ...]

    @property
    def num_misses(self) -> int:
        """How many of the queries shown missed."""
        return sum(query.is_miss for query in self.queries)


def gallery_of(galleries: Sequence[SuiteGallery]) -> tuple[Task, ...]:
    """Return the tasks that have queries to show, each with an anchor of its own."""
    shown = [(gallery.suite, task) for gallery in galleries for task in gallery.tasks if task.queries]
    return tuple(_task(f"task-{number}", suite, task) for number, (suite, task) in enumerate(shown))


def _task(anchor: str, suite: str, task: ShownTask) -> Task:
    return Task(anchor, suite, task.task, tuple(map(_query, task.queries)))


def _query(query: ShownQuery) -> Query:
    return Query(clipped(query.text), _images(query), query.rank, tuple(map(_result, query.top)))


def _result(found: Found) -> Result:
    return Result(clipped(found.text), _images(found), f"{found.score:.2f}", found.right)


def _images(shown: Shown) -> tuple[str | None, ...]:
    return tuple(image if _IMAGE.fullmatch(image) else None for image in shown.images)
